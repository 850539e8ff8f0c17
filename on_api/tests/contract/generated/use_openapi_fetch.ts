// The types that openapi-typescript makes, used by openapi-fetch.
import createClient from "openapi-fetch";
import type { paths } from "./openapi_typescript";

declare const process: { env: Record<string, string> };
const { BASE, KEY } = process.env;
const api = createClient<paths>({ baseUrl: BASE, headers: { Authorization: `Bearer ${KEY}` } });

function form(body: { visibility?: "public" | "private"; file?: unknown }): FormData {
  const data = new FormData();
  if (body.visibility) data.append("visibility", body.visibility);
  data.append("file", new Blob([TEXT]), "of.txt");
  return data;
}
const TEXT = "from openapi-fetch";
const steps: Record<string, unknown> = {};
const ids: string[] = [];
for (const visibility of ["public", "private"] as const) {
  const up = await api.POST("/VERSION/files", { body: { visibility, file: [TEXT] }, bodySerializer: form });
  if (!up.data || !("id" in up.data)) throw new Error(JSON.stringify(up.error));
  steps[visibility] = [up.response.status, up.data.visibility, up.data.size];
  ids.push(up.data.id);
}
const [id, secret] = ids;
const listed = await api.GET("/VERSION/files", { params: { query: { limit: 2, name: "of.txt" } } });
steps.list = listed.data?.items.map((file) => file.id);
const changed = await api.PATCH("/VERSION/files/{file_id}", { params: { path: { file_id: id } }, body: { meta: { a: "b" } } });
steps.patch = [changed.response.status, changed.data?.name, changed.data?.meta];
const cid = changed.data!.cid;
const pinned = await api.POST("/VERSION/pins", { body: { cid, name: "of" } });
steps.pin = [pinned.response.status, pinned.data?.pin.name];
const pins = await api.GET("/VERSION/pins", { params: { query: { status: ["pinned", "queued", "pinning"], cid: [cid] } }, querySerializer: { array: { style: "form", explode: false } } });
steps.pins = pins.data?.results.map((pin) => pin.requestid === pinned.data?.requestid);
const content = await api.GET("/VERSION/files/{file_id}/content", { params: { path: { file_id: secret } }, parseAs: "text" });
steps.content = content.data;
const gone = await api.DELETE("/VERSION/files/{file_id}", { params: { path: { file_id: id } } });
steps.delete = gone.response.status;
const missing = await api.GET("/VERSION/files/{file_id}", { params: { path: { file_id: id } } });
steps.missing = [missing.response.status, missing.error !== undefined];
console.log(JSON.stringify(steps));
