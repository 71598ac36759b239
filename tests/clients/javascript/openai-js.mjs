// OpenAI's SDK for JavaScript: chat completions, responses and files.
import fs from "node:fs";
import path from "node:path";
import OpenAI from "openai";

const [PICTURE, PDF] = process.argv.slice(2);
const client = new OpenAI({ baseURL: process.env.OCR_BASE_URL, apiKey: "EMPTY" });
const uri = (file, kind) => `data:${kind};base64,${fs.readFileSync(file).toString("base64")}`;
const show = (...line) => console.log(JSON.stringify(line));

const text = { type: "text", text: "Free OCR." };
const picture = { type: "image_url", image_url: { url: uri(PICTURE, "image/png") } };
const pdf = { type: "file", file: { file_data: uri(PDF, "application/pdf"), filename: path.basename(PDF) } };
for (const [name, part] of [["picture", picture], ["pdf", pdf]]) {
  const answer = await client.chat.completions.create({
    model: "deepseek-ocr",
    messages: [{ role: "user", content: [part, text] }],
  });
  show(name, "chat", "Free OCR.", answer.choices[0].message.content);
}

const stream = client.chat.completions.stream({
  model: "deepseek-ocr",
  messages: [{ role: "user", content: [text, picture] }],
});
show("picture", "chat as a stream", "Free OCR.", await stream.finalContent());

const file = await client.files.create({ file: fs.createReadStream(PDF), purpose: "user_data" });
const answer = await client.responses.create({
  model: "deepseek-ocr",
  input: [
    { role: "user", content: [{ type: "input_text", text: "Free OCR." }, { type: "input_file", file_id: file.id }] },
  ],
});
show("pdf", "responses with an uploaded file", "Free OCR.", answer.output_text);
await client.files.delete(file.id);
