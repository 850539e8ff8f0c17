// The client that orval makes for `fetch`.
import * as api from "./orval";

declare const process: { env: Record<string, string> };
const options = { headers: { Authorization: `Bearer ${process.env.KEY}` } };
const TEXT = "from orval";
const steps: Record<string, unknown> = {};
const ids: string[] = [];
for (const visibility of ["public", "private"] as const) {
  const up = await api.uploadFiles({ visibility, file: [new File([TEXT], "of.txt")] }, undefined, options);
  if (up.status !== 201 || !("id" in up.data)) throw new Error(JSON.stringify(up.data));
  steps[visibility] = [up.status, up.data.visibility, up.data.size];
  ids.push(up.data.id);
}
const [id, secret] = ids;
const listed = await api.listMyFiles({ limit: 2, name: "of.txt" }, options);
if (listed.status !== 200) throw new Error(JSON.stringify(listed.data));
steps.list = listed.data.items.map((file) => file.id);
const changed = await api.changeOneFile(id, { meta: { a: "b" } }, options);
if (changed.status !== 200) throw new Error(JSON.stringify(changed.data));
steps.patch = [changed.status, changed.data.name, changed.data.meta];
const cid = changed.data.cid;
const pinned = await api.addPin({ cid, name: "of" }, options);
if (pinned.status !== 202) throw new Error(JSON.stringify(pinned.data));
steps.pin = [pinned.status, pinned.data.pin.name];
const pins = await api.getPins({ status: ["pinned", "queued", "pinning"], cid: [cid] }, options);
if (pins.status !== 200) throw new Error(JSON.stringify(pins.data));
steps.pins = pins.data.results.map((pin) => pin.requestid === pinned.data.requestid);
const content = await api.getContent(secret, undefined, options);
if (content.status !== 200) throw new Error(JSON.stringify(content.data));
steps.content = await content.data.text();
const gone = await api.deleteOneFile(id, options);
steps.delete = gone.status;
const missing = await api.getOneFile(id, options);
steps.missing = [missing.status, missing.status === 404];
console.log(JSON.stringify(steps));
