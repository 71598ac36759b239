// What the model was trained to be asked, as ocr_server/routes/service.py lists it: a test holds the two together.

export const PROMPTS = {
  markdown: "<|grounding|>Convert the document to markdown.",
  lines: "<|grounding|>OCR this image.",
  free: "Free OCR.",
  figure: "Parse the figure.",
  describe: "Describe this image in detail.",
  locate: "Locate <|ref|>text<|/ref|> in the image.",
};
