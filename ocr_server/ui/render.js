// Renders the model's markdown and HTML. Its text comes from untrusted pages, so the result is sanitised.

const { DOMPurify, marked, temml } = globalThis;

const TAGS = [
  "b", "blockquote", "br", "caption", "center", "code", "col", "colgroup", "del", "div", "em", "h1", "h2", "h3", "h4",
  "h5", "h6", "hr", "i", "li", "ol", "p", "pre", "s", "span", "strong", "sub", "sup", "table", "tbody", "td", "tfoot",
  "th", "thead", "tr", "u", "ul",
];
const SANITIZER_OPTIONS = {
  USE_PROFILES: { mathMl: true },
  ADD_TAGS: TAGS,
  ADD_ATTR: ["colspan", "rowspan", "start"],
  FORBID_TAGS: ["a", "annotation", "annotation-xml", "img", "maction", "mglyph", "semantics", "style", "svg"],
  FORBID_ATTR: ["background", "class", "href", "id", "name", "src", "style", "xlink:href"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const FORMULA = /\\\(([^]+?)\\\)|\\\[([^]+?)\\\]|\$\$([^]+?)\$\$/;

const formula = {
  name: "formula",
  level: "inline",
  start: (source) => source.search(/\\[([]|\$\$/),
  tokenizer: (source) => token(source.match(new RegExp(`^(?:${FORMULA.source})`))),
  renderer: ({ match }) => mathMl(match),
};
const formulaBlock = {
  ...formula,
  name: "formulaBlock",
  level: "block",
  start: (source) => source.match(/^ {0,3}(?:\\\[|\$\$)/m)?.index,
  tokenizer: (source) => token(source.match(/^ {0,3}(?:(?!)()|\\\[([^]+?)\\\]|\$\$([^]+?)\$\$)[^\S\n]*(?:\n|$)/), "formulaBlock"),
};
const markdown = new marked.Marked({ gfm: true, breaks: true });
markdown.use({ extensions: [formula, formulaBlock] });

// Returns a document fragment without links, images, scripts or styles.
export function renderMarkdown(text) {
  const fragment = DOMPurify.sanitize(markdown.parse(text), SANITIZER_OPTIONS);
  renderFormulas(fragment);
  return fragment;
}

// Renders formulas within HTML, such as table cells, which the markdown parser does not process.
function renderFormulas(fragment) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (FORMULA.test(node.data) && !node.parentElement?.closest("code, pre, math")) found.push(node);
  }
  for (const node of found) {
    let match;
    let rest = node;
    while ((match = rest.data.match(FORMULA))) {
      const start = rest.splitText(match.index);
      rest = start.splitText(match[0].length);
      start.replaceWith(DOMPurify.sanitize(mathMl(match), SANITIZER_OPTIONS));
    }
  }
}

function token(match, type = "formula") {
  return match ? { type, raw: match[0], match } : undefined;
}

function mathMl([raw, inline, display, dollars]) {
  try {
    const options = { displayMode: inline === undefined, throwOnError: true };
    return temml.renderToString(inline ?? display ?? dollars, options).replace(/ style="[^"]*"/g, "");
  } catch {
    return element("code", raw);
  }
}

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node.outerHTML;
}
