// Node's own client without keep-alive: how often is an early refusal seen?  node refused.mjs BASE SIZE TIMES
import http from "node:http";

const [base, size, times] = process.argv.slice(2);
const once = () => new Promise((resolve) => {
    const request = http.request(`${base}/v1/files?name=node`, {
        method: "PUT", agent: new http.Agent({ keepAlive: false }),
        headers: { Authorization: "Bearer nobody", "Content-Length": size },
    }, (answer) => { answer.resume(); resolve(answer.statusCode); });
    request.on("error", (error) => resolve(error.code));
    request.end(Buffer.alloc(Number(size)));
});
for (let time = 0; time < Number(times); time++) console.log(await once());
