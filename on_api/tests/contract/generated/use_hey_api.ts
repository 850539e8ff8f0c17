// The client that @hey-api/openapi-ts makes.
import { client } from "./hey_api/client.gen";
import * as api from "./hey_api";

declare const process: { env: Record<string, string> };
const { BASE, KEY } = process.env;
client.setConfig({ baseUrl: BASE, auth: KEY });
const TEXT = "from hey-api";
const steps: Record<string, unknown> = {};
const ids: string[] = [];
for (const visibility of ["public", "private"] as const) {
  const up = await api.uploadFiles({ body: { visibility, file: [new File([TEXT], "of.txt")] } });
  if (!up.data || !("id" in up.data)) throw new Error(JSON.stringify(up.error));
  steps[visibility] = [up.response?.status, up.data.visibility, up.data.size];
  ids.push(up.data.id);
}
const [id, secret] = ids;
const listed = await api.listMyFiles({ query: { limit: 2, name: "of.txt" } });
steps.list = listed.data?.items.map((file) => file.id);
const changed = await api.changeOneFile({ path: { file_id: id }, body: { meta: { a: "b" } } });
steps.patch = [changed.response?.status, changed.data?.name, changed.data?.meta];
const cid = changed.data!.cid;
const pinned = await api.addPin({ body: { cid, name: "of" } });
steps.pin = [pinned.response?.status, pinned.data?.pin.name];
const pins = await api.getPins({ query: { status: ["pinned", "queued", "pinning"], cid: [cid] } });
steps.pins = pins.data?.results.map((pin) => pin.requestid === pinned.data?.requestid);
const content = await api.getContent({ path: { file_id: secret } });
steps.content = content.data instanceof Blob ? await content.data.text() : content.data;
const gone = await api.deleteOneFile({ path: { file_id: id } });
steps.delete = gone.response?.status;
const missing = await api.getOneFile({ path: { file_id: id } });
steps.missing = [missing.response?.status, missing.error !== undefined];
console.log(JSON.stringify(steps));
