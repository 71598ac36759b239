// Mistral's SDK for JavaScript: OCR of a picture, of an uploaded file and of its signed URL, and chat.
import fs from "node:fs";
import path from "node:path";
import { Mistral } from "@mistralai/mistralai";

const [PICTURE, PDF] = process.argv.slice(2);
const client = new Mistral({ serverURL: process.env.OCR_BASE_URL.replace(/\/v1$/, ""), apiKey: "EMPTY" });
const url = `data:image/png;base64,${fs.readFileSync(PICTURE).toString("base64")}`;
const show = (...line) => console.log(JSON.stringify(line));
const joined = (answer) => answer.pages.map((page) => page.markdown).join("\n\n");
const model = "mistral-ocr-latest";

show("picture", "ocr", "", joined(await client.ocr.process({ model, document: { type: "image_url", imageUrl: url } })));

const content = fs.readFileSync(PDF);
const file = await client.files.upload({ file: { fileName: path.basename(PDF), content }, purpose: "ocr" });
const signed = await client.files.getSignedUrl({ fileId: file.id });
const document = { type: "document_url", documentUrl: signed.url };
show("pdf", "ocr of a signed URL", "", joined(await client.ocr.process({ model, document })));
const uploaded = { type: "file", fileId: file.id };
show("pdf", "ocr of an uploaded file", "", joined(await client.ocr.process({ model, document: uploaded })));
await client.files.delete({ fileId: file.id });

const answer = await client.chat.complete({
  model: "deepseek-ocr",
  messages: [{ role: "user", content: [{ type: "text", text: "Free OCR." }, { type: "image_url", imageUrl: url }] }],
});
show("picture", "chat", "Free OCR.", answer.choices[0].message.content);
