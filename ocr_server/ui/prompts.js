// The prompts that the model was trained with, as `GET /` lists them. A test checks that both agree.

export const PROMPTS = {
  markdown: "<|grounding|>Convert the document to markdown.",
  lines: "<|grounding|>OCR this image.",
  free: "Free OCR.",
  figure: "Parse the figure.",
  describe: "Describe this image in detail.",
  locate: "Locate <|ref|>text<|/ref|> in the image.",
};
