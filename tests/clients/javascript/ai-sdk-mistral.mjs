// The AI SDK with @ai-sdk/mistral: chat.
import fs from "node:fs";
import { generateText, streamText } from "ai";
import { createMistral } from "@ai-sdk/mistral";

const [PICTURE, PDF] = process.argv.slice(2);
const provider = createMistral({ baseURL: process.env.OCR_BASE_URL, apiKey: "EMPTY" });
const model = provider("deepseek-ocr");
const text = { type: "text", text: "Free OCR." };
const parts = {
  picture: { type: "image", image: fs.readFileSync(PICTURE) },
  pdf: { type: "file", data: fs.readFileSync(PDF), mediaType: "application/pdf" },
};
for (const [name, part] of Object.entries(parts)) {
  const answer = await generateText({ model, messages: [{ role: "user", content: [text, part] }] });
  console.log(JSON.stringify([name, "generateText", "Free OCR.", answer.text]));
}
const answer = streamText({ model, messages: [{ role: "user", content: [text, parts.picture] }] });
console.log(JSON.stringify(["picture", "streamText", "Free OCR.", await answer.text]));
