// The replies of a report: filtered, searched, compared. Only the rows of one page are in the document at a time, so that tens of
// thousands of replies cost no more than fifty. No library, no network; without it the page lacks nothing but this section.
"use strict";
(() => {
  const source = document.getElementById("replies-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PER_PAGE = 25;
  const [PROMPT, METHOD, ASKED, DRAW, READ, MATCH, FLUENT, PERPLEXITY, TEXT] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const get = (id) => document.getElementById(id);
  const form = get("find"), list = get("found"), status = get("found-status"), pageInput = get("page");
  const fields = Object.fromEntries(["method", "asked", "verdict", "fluent", "beside", "search"].map((n) => [n, get("find-" + n)]));
  const haystack = new Array(data.rows.length);   // lower-cased texts, made when first searched
  const other = new Map();                        // prompt, asked, draw, method -> row, for what stands beside
  const name = (row, method, draw) => [row[PROMPT], row[ASKED], draw, method].join();
  for (const row of data.rows) other.set(name(row, row[METHOD], row[DRAW]), row);
  let hits = [], page = 0;

  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const options = (select, names) => names.forEach(([value, text]) => select.append(new Option(text, value)));
  const named = (names) => names.map((text, i) => [i, text || "none"]);
  options(fields.method, named(data.methods));
  options(fields.beside, named(data.methods));
  options(fields.asked, named(data.asked));
  options(fields.verdict, data.read.flatMap((text, i) => (text ? [["read" + i, "read as " + text]] : [])));

  const verdicts = { match: (r) => r[MATCH] === 1, miss: (r) => r[MATCH] === 0, unjudged: (r) => !data.read[r[READ]] };
  const fluency = { yes: 1, no: 0, unknown: -1 };

  function search() {
    const { method, asked, verdict, fluent, beside } = Object.fromEntries(Object.entries(fields).map(([k, f]) => [k, f.value]));
    const words = fields.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const judged = verdicts[verdict] || ((r) => r[READ] === Number(verdict.slice(4)));
    hits = [];
    data.rows.forEach((row, i) => {
      if (method !== "" && row[METHOD] !== Number(method)) return;
      if (asked !== "" && row[ASKED] !== Number(asked)) return;
      if (verdict !== "" && !judged(row)) return;
      if (fluent !== "" && row[FLUENT] !== fluency[fluent]) return;
      if (beside !== "" && (row[METHOD] === Number(beside) || !partner(row, Number(beside)))) return;
      if (words.length) {
        haystack[i] ??= (data.texts[row[TEXT]] + " " + data.prompts[row[PROMPT]].join(" ")).toLowerCase();
        if (!words.every((word) => haystack[i].includes(word))) return;
      }
      hits.push(i);
    });
    page = 0;
    show();
  }

  // Of the same prompt and emotion: the reply of the other method in the same draw, else in its first.
  const partner = (row, method) => other.get(name(row, method, row[DRAW])) || other.get(name(row, method, 0));

  function show() {
    const pages = Math.max(1, Math.ceil(hits.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const beside = fields.beside.value, first = page * PER_PAGE, shown = hits.slice(first, first + PER_PAGE);
    let prompt = -1;
    const parts = [];
    for (const i of shown) {
      const row = data.rows[i];
      if (row[PROMPT] !== prompt) parts.push(heading(data.prompts[(prompt = row[PROMPT])]));
      parts.push(item(i, beside === "" ? null : partner(row, Number(beside))));
    }
    list.replaceChildren(...parts);
    const count = hits.length.toLocaleString("en");
    status.textContent = !hits.length ? "No reply is like that." :
      `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${count}` +
      (hits.length < data.rows.length ? ` (${data.rows.length.toLocaleString("en")} in all)` : "");
    get("previous").disabled = page === 0;
    get("next").disabled = page === pages - 1;
    pageInput.max = pages;
    pageInput.value = page + 1;
    get("of-pages").textContent = `of ${pages.toLocaleString("en")}`;
  }

  function heading([labels, key, text]) {
    const made = make("div", "of-prompt");
    made.setAttribute("role", "heading");
    made.setAttribute("aria-level", "3");
    made.append(make("b", "", labels || key), make("span", "soft", (labels ? key + " " : "") + text));
    return made;
  }

  function item(i, second) {
    const row = data.rows[i], made = make("div", second ? "reply two" : "reply"), who = make("div", "who");
    made.setAttribute("role", "listitem");
    const asked = data.asked[row[ASKED]];
    who.append(make("b", "", second ? asked || "nothing aimed at" : data.methods[row[METHOD]]));
    if (asked && !second) who.append(make("span", "answer", "aimed at: " + asked));
    if (row[DRAW]) who.append(make("span", "answer", "draw " + (row[DRAW] + 1)));
    made.append(who);
    const texts = [row, second].filter(Boolean).map((r) => data.texts[r[TEXT]]);
    const marks = second ? differing(...texts) : [];
    [row, second].filter(Boolean).forEach((r, side) => {
      const cell = make("div");
      if (second) cell.append(make("span", "answer", data.methods[r[METHOD]]));
      const spoken = !second && data.tokens[i];
      if (spoken) cell.append(tokens(spoken, asked));
      else if (second) words(texts[side], marks[side]).forEach((part) => cell.append(part));
      else cell.append(texts[side] || "(empty)");
      cell.append(answer(r));
      made.append(cell);
    });
    return made;
  }

  function answer(row) {
    const right = { 1: "yes", 0: "no" }[row[MATCH]] || "", made = make("span", "answer " + right);
    const sign = { yes: "✓ as aimed at: ", no: "✗ " }[right] || "";
    const fluent = { 1: "fluent", 0: "not fluent" }[row[FLUENT]];
    const cost = row[PERPLEXITY] === null ? "" : `perplexity ${row[PERPLEXITY]}`;
    made.textContent = [sign + (data.read[row[READ]] || "unjudged"), fluent, cost].filter(Boolean).join(" · ");
    return made;
  }

  // The words of each text that the other lacks, by the longest common subsequence.
  function differing(a, b) {
    const [x, y] = [a, b].map((text) => text.split(/(\s+)/));
    const [p, q] = [x, y].map((parts) => parts.filter((_, i) => i % 2 === 0));
    const length = Array.from({ length: p.length + 1 }, () => new Uint16Array(q.length + 1));
    for (let i = p.length - 1; i >= 0; i--)
      for (let j = q.length - 1; j >= 0; j--)
        length[i][j] = p[i] === q[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    const [left, right] = [new Set(), new Set()];
    let i = 0, j = 0;
    while (i < p.length || j < q.length) {
      if (i < p.length && j < q.length && p[i] === q[j]) { i++; j++; }
      else if (j === q.length || (i < p.length && length[i + 1][j] >= length[i][j + 1])) left.add(i++);
      else right.add(j++);
    }
    return [left, right];
  }

  function words(text, marked) {
    if (!text) return ["(empty)"];
    return text.split(/(\s+)/).map((part, i) => (i % 2 === 0 && part && marked.has(i / 2) ? make("mark", "", part) : part));
  }

  // A reply whose tokens were projected: the number of each on hover, and with the arrow keys.
  function tokens(spoken, asked) {
    const made = make("div"), most = Math.max(...spoken.map(([, v]) => Math.abs(v ?? 0))) || 1;
    made.tabIndex = 0;
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", `Projection of every token${asked ? " on " + asked : ""}; arrow keys go through the tokens`);
    const said = make("span", "unseen");
    said.setAttribute("role", "status");
    const parts = spoken.map(([text, value]) => {
      const part = make("span", value < 0 ? "token minus" : "token", text);
      part.dataset.value = value === null ? "not known" : String(value).replace("-", "−");
      part.style.setProperty("--share", (0.6 * Math.abs(value ?? 0)) / most);
      return part;
    });
    let at = -1;
    made.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      parts[at]?.classList.remove("at");
      at = Math.min(Math.max(at + step, 0), parts.length - 1);
      parts[at].classList.add("at");
      said.textContent = `${parts[at].textContent} ${parts[at].dataset.value}`;
    });
    made.addEventListener("blur", () => parts[at]?.classList.remove("at"));
    made.append(...parts, said);
    return made;
  }

  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(search));
  const turn = (to) => {
    page = to;
    show();
    get("replies").scrollIntoView();
  };
  get("previous").addEventListener("click", () => turn(page - 1));
  get("next").addEventListener("click", () => turn(page + 1));
  pageInput.addEventListener("change", () => turn(Math.trunc(Number(pageInput.value) || 1) - 1));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  get("replies-tool").hidden = false;
  search();
})();
