// The page of `rs-rlhf browse`. Scores and counts come from the server, and text of the data is only set as text.
const $ = (id) => document.getElementById(id);
const VIEWS = [["cut", "around the cut"], ["best", "best"], ["worst", "worst"], ["random", "random"], ["sorted", "sorted"], ["marked", "by hand"]];
const SORTS = { score: "score", tokens: "length", std: "spread of the models' scores" };
const COMPARED = [["only_here", "kept only here"], ["only_there", "kept only by the other"]];
const SIZE = innerWidth < 620 ? 12 : 24; // on a small screen both sides of the cut are to be within reach
const START = { top: 0.3, threshold: null, source: null, label: null, low: "", high: "", search: "", errors: false,
  view: "cut", page: 0, seed: 0, sort: "score", order: "down" };
const state = { ...START };
let summary = null;
let chart = null;

const whole = (value) => value.toLocaleString("en");
const plural = (count, what) => `${whole(count)} ${count === 1 ? what.replace(/s$/, "") : what}`;
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : "–");
const percent = (share) => `${Number((100 * share).toFixed(share < 0.01 ? 3 : 1))}%`;

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => raw <= factor * power * 1.0001);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(10)));
  return out;
}

// ---- The state is also in the address, so that a page can be reloaded, gone back to and passed on.

function writeAddress() {
  const told = new URLSearchParams();
  for (const [key, value] of Object.entries(state))
    if (value !== null && value !== START[key]) told.set(key, value);
  history.replaceState(null, "", `#${told}`);
}

function readAddress() {
  Object.assign(state, START);
  for (const [key, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!(key in START)) continue;
    const kind = typeof START[key];
    state[key] = key === "threshold" || kind === "number" ? Number(text) : kind === "boolean" ? text === "true" : text;
  }
  if (state.threshold !== null) state.top = null;
}

// ---- Asking the server: of each kind of question only the last one asked is of interest.

const asked = {};
async function ask(kind, path, parameters) {
  if (asked[kind]) asked[kind].abort();
  const own = (asked[kind] = new AbortController());
  const told = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) if (value !== null) told.set(key, value);
  const reply = await fetch(`${path}?${told}`, { signal: own.signal });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

function tell(error) {
  if (error.name === "AbortError") return;
  $("problem").textContent = error instanceof TypeError ? "The server does not answer; is `rs-rlhf browse` still running?" : error.message;
  $("problem").hidden = false;
}

const cutOf = () => (state.threshold === null ? { top: state.top } : { threshold: state.threshold });
const filters = () => ({ source: state.source, label: state.label, // an empty name is a name like any other
  low: state.low || null, high: state.high || null, search: state.search || null });

async function showSummary() {
  try {
    summary = await ask("summary", "api/summary", { ...cutOf(), ...filters() });
    $("problem").hidden = true;
  } catch (error) {
    return tell(error);
  }
  showFacts();
  showCut();
  showTables();
  chart.draw();
}

let shown = 0;
async function showRows() {
  const turn = ++shown;
  const sides = state.view === "cut" && !state.errors ? ["above", "below"] : [state.errors ? "errors" : state.view];
  $("rows").classList.add("busy");
  const slow = setTimeout(() => { $("where").textContent = "looking …"; }, 1000);
  try {
    const size = SIZE / sides.length;
    const answers = await Promise.all(sides.map((view) =>
      ask(view, "api/rows", { ...cutOf(), ...filters(), view, size, page: state.page, seed: state.seed, sort: state.sort, order: state.order })));
    drawRows(sides, answers, size);
  } catch (error) {
    tell(error);
  }
  clearTimeout(slow);
  if (turn === shown) $("rows").classList.remove("busy");
}

let waiting = null;
function changed(what, wait = 0) { // "cut", "filter" or "page"
  if (what !== "page") state.page = 0;
  writeAddress();
  showControls();
  clearTimeout(waiting);
  waiting = setTimeout(() => { if (what !== "page") showSummary(); showRows(); }, wait);
}

function setCut(cut, wait = 0) {
  [state.top, state.threshold] = "top" in cut ? [cut.top, null] : [null, cut.threshold];
  changed("cut", wait);
}

// ---- The cut: its numbers

function showFacts() {
  $("title").textContent = summary.title;
  $("facts").replaceChildren(...summary.facts.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text))));
  const names = summary.compared ? [...VIEWS, ...COMPARED] : VIEWS;
  $("last-view").textContent = names.length;
  if ($("views").childElementCount !== names.length)
    $("views").replaceChildren(...names.map(([name, text]) => element("button", { type: "button", "data-view": name,
      onclick: () => { state.view = name; state.errors = false; state.page = 0; changed("page"); } }, text)));
  if ($("sort").childElementCount !== summary.sortable.length)
    $("sort").replaceChildren(...summary.sortable.map((name) => element("option", { value: name }, SORTS[name] || summary.compared.name)));
  choices($("source"), summary.sources.groups, "all sources", state.source);
  choices($("label"), summary.labels.groups, "all classes", state.label);
  showControls();
}

function choices(select, groups, all, now) { // a value starts with "=", since an empty name is a name too
  const names = groups.map((group) => group.name);
  if (now !== null && !names.includes(now)) names.push(now);
  if (select.dataset.names !== JSON.stringify(names)) {
    select.dataset.names = JSON.stringify(names);
    select.replaceChildren(element("option", { value: "" }, all),
      ...names.map((name) => element("option", { value: `=${name}` }, name || "(none)")));
  }
  select.value = now === null ? "" : `=${now}`;
}

function showControls() {
  for (const key of ["low", "high", "search"]) if (document.activeElement !== $(key)) $(key).value = state[key];
  for (const key of ["source", "label"]) $(key).value = state[key] === null ? "" : `=${state[key]}`;
  $("errors").checked = state.errors;
  $("sorting").hidden = state.view !== "sorted";
  if ($("sort").childElementCount) $("sort").value = state.sort;
  $("order").textContent = state.order === "down" ? "↓ highest first" : "↑ lowest first";
  for (const button of $("views").children)
    button.setAttribute("aria-pressed", !state.errors && button.dataset.view === state.view);
}

function showCut() {
  const { cut, kept, selected, unit } = summary;
  if (document.activeElement !== $("top")) $("top").value = Number((100 * cut.top).toPrecision(6));
  if (document.activeElement !== $("threshold")) $("threshold").value = cut.threshold_text;
  $("top").setAttribute("aria-invalid", false);
  $("threshold").setAttribute("aria-invalid", false);
  $("command").textContent = cut.command;
  const figure = (big, text, soft) => element("div", {}, element("div", { class: "big" }, big), element("div", {}, text), element("div", { class: "soft" }, soft));
  const figures = [
    figure(whole(kept.samples[0]), `of ${plural(kept.samples[1], unit)} kept`, `${percent(kept.samples[0] / (kept.samples[1] || 1))} of those with a score` + (unit === "texts" ? "" : `; ${plural(kept.texts, "texts")}`)),
    figure(whole(kept.rows[0]), `of ${plural(kept.rows[1], "rows")} kept`, "with at least one text that is kept"),
  ];
  if (summary.compared) figures.push(figure(whole(summary.compared.both), `of them kept by ${summary.compared.name} too`,
    `at the same share; rank correlation ${short(summary.compared.correlation)} over ${whole(summary.compared.common)}`));
  if (selected) figures.push(figure(whole(selected.kept), `of ${plural(selected.samples, unit)} kept among those chosen below`, percent(selected.kept / (selected.samples || 1))));
  if (cut.equal_dropped) figures.push(element("p", { class: "soft" }, `${whole(cut.equal_dropped)} with exactly the lowest score kept are dropped: the order of the data decides.`));
  const { kept: byHand, rejected } = summary.marks;
  if (byHand + rejected) figures.push(figure(`+${whole(byHand)} −${whole(rejected)}`, "kept and rejected by hand", "the command below keeps what the list of both, kept_ids, names"));
  $("write").hidden = !(byHand + rejected);
  $("figures").replaceChildren(...figures);
  $("legend").textContent = selected ? `Bars: the chosen ${unit}, of ${whole(selected.samples)}${summary.histogram.all ? "; pale, on a scale of its own: all" : ""}. Drag the line, or move it with the arrow keys.`
    : `Bars: ${unit} by score; blue is kept. Drag the line, or move it with the arrow keys.`;
}

function showTables() {
  for (const [id, key] of [["sources", "source"], ["labels", "label"]]) {
    const { groups, left_out: leftOut } = summary[id];
    const heads = [[key === "source" ? "source" : "class"], ["kept"], [summary.unit], ["rows kept"], ["mean", "mean"], ["share", "share"]];
    const lines = groups.map((group) => {
      const share = group.kept / (group.samples || 1);
      return element("tr", {}, element("th", { scope: "row" }, element("button", { type: "button", "aria-pressed": state[key] === group.name,
        title: `Show only ${group.name || "those without"}`, onclick: () => { state[key] = state[key] === group.name ? null : group.name; changed("filter"); } }, group.name || "(none)")),
        element("td", {}, whole(group.kept)), element("td", {}, whole(group.samples)), element("td", {}, `${whole(group.rows_kept)} of ${whole(group.rows)}`),
        element("td", { class: "mean" }, short(group.mean)), element("td", { class: "share" }, element("span", {}, element("span", { class: "bar" }, bar(share)), element("span", { class: "percent" }, percent(share)))));
    });
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind || null }, text)))), element("tbody", {}, ...lines));
    const place = $(id).scrollTop;
    $(id).replaceChildren(table, ...(leftOut ? [element("p", { class: "soft" }, `${plural(leftOut, "smaller ones")} not shown.`)] : []));
    $(id).scrollTop = place;
  }
}

function bar(share) {
  const made = element("i");
  made.style.width = percent(share);
  return made;
}

// ---- The histogram

function makeChart() {
  let height = 240;
  const svg = element("svg", { role: "group", "aria-label": "Histogram of the scores, with the cut" });
  $("histogram").append(svg);
  let width = 0;
  let dragged = null;
  const scale = () => {
    const { low, high } = summary.histogram;
    const [left, right] = [14, width - 14];
    return { left, right, low, high, x: (value) => left + (value - low) / (high - low) * (right - left), value: (x) => low + (x - left) / (right - left) * (high - low) };
  };
  const clip = element("rect", { y: 0, height: "100%" });
  const handle = element("g", { class: "cut", tabindex: 0, role: "slider", "aria-label": "Lowest score kept" });
  const move = (value) => {
    const { left, right, low, high, x } = scale();
    const at = Math.min(right, Math.max(left, x(value)));
    clip.setAttribute("x", at);
    clip.setAttribute("width", Math.max(0, right - at + 1));
    for (const [key, own] of [["valuemin", low], ["valuemax", high], ["valuenow", value]]) handle.setAttribute(`aria-${key}`, short(own));
    handle.setAttribute("aria-valuetext", `${short(value)}, ${percent(summary.cut.top)} kept`);
    const end = at > width / 2 ? { x: at - 9, "text-anchor": "end" } : { x: at + 9 };
    handle.replaceChildren(element("rect", { x: at - 12, y: 0, width: 24, height: height - 20, fill: "transparent" }),
      element("line", { x1: at, x2: at, y1: 8, y2: height - 22 }), element("circle", { cx: at, cy: 12, r: 6 }),
      element("text", { ...end, y: 16 }, short(value)));
  };
  const draw = () => {
    if (!summary || !width || dragged !== null) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const { counts, all } = summary.histogram;
    const { left, right, low, high, x } = scale();
    const base = height - 22;
    const bars = (kind, values, most, extra = {}) => element("g", { class: kind, ...extra }, ...values.map((count, i) => {
      const [from, to] = [left + i / values.length * (right - left), left + (i + 1) / values.length * (right - left)];
      const tall = count ? Math.max(1.5, count / most * (base - 30)) : 0;
      const ends = [i, i + 1].map((edge) => short(low + edge / values.length * (high - low)));
      return element("rect", { x: from + 0.5, width: Math.max(0.6, to - from - 1), y: base - tall, height: tall },
        element("title", {}, `${ends[0]} to ${ends[1]}: ${whole(count)}`));
    }));
    const most = Math.max(1, ...counts);
    const behind = all ? [bars("all", all, Math.max(1, ...all))] : [];
    svg.replaceChildren(element("clipPath", { id: "kept-part" }, clip), ...behind, bars("dropped", counts, most),
      bars("kept", counts, most, { "clip-path": "url(#kept-part)" }), element("text", { x: left, y: 10 }, `${whole(most)} in the highest bar`), element("line", { class: "axis", x1: left, x2: right, y1: base, y2: base }),
      ...ticks(low, high, Math.max(2, Math.floor(width / 70))).map((tick) => element("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, short(tick))), handle);
    move(summary.cut.threshold);
  };
  const at = (event) => {
    const { low, high, value } = scale();
    return Math.min(high, Math.max(low, value(event.clientX - svg.getBoundingClientRect().left)));
  };
  svg.onpointerdown = (event) => {
    if (!summary || event.button) return;
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    dragged = at(event);
    handle.focus();
    move(dragged);
    setCut({ threshold: Number(dragged.toPrecision(6)) });
  };
  svg.onpointermove = (event) => {
    if (dragged === null) return;
    dragged = at(event);
    move(dragged);
    setCut({ threshold: Number(dragged.toPrecision(6)) }, 90);
  };
  svg.onpointerup = svg.onpointercancel = () => {
    if (dragged === null) return;
    const cut = Number(dragged.toPrecision(6));
    dragged = null;
    setCut({ threshold: cut });
  };
  handle.addEventListener("keydown", (event) => {
    const { low, high } = scale();
    const steps = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -2, End: 2 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const value = Math.min(high, Math.max(low, summary.cut.threshold + steps[event.key] * (high - low)));
    summary.cut.threshold = value;
    move(value);
    setCut({ threshold: Number(value.toPrecision(6)) }, 60);
  });
  new ResizeObserver(() => {
    const now = [Math.floor($("histogram").clientWidth), Math.floor($("histogram").clientHeight)];
    if (now[0] <= 60 || (now[0] === width && now[1] === height)) return;
    [width, height] = now;
    draw();
  }).observe($("histogram"));
  return { draw };
}

// ---- The samples

const pictures = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    pictures.unobserve(entry.target);
    fillCard(entry.target);
  }
}, { rootMargin: "200px" });

async function fillCard(card) { // its question and its images, when it comes into view
  const place = card.querySelector(".pictures");
  const none = (text, kind = "") => element("div", { class: `none ${kind}` }, text);
  try {
    const reply = await fetch(`api/row/${card.dataset.row}`);
    const row = await reply.json();
    if (!reply.ok) return place.replaceChildren(none(row.error, "broken"));
    row.prompts.forEach((prompt, i) => {
      const asked = card.querySelectorAll(".asked")[i];
      if (asked && prompt) [asked.textContent, asked.hidden] = [prompt, false];
    });
    if (!row.images) return place.replaceChildren(none(row.error ? "The row cannot be read." : "no image"));
    place.replaceChildren(...[...Array(Math.min(row.images, 4)).keys()].map(() => none("…")));
    await Promise.all([...place.children].map((slot, k) => fillPicture(slot, card, k, row.images)));
    if (row.images > 4) place.append(element("div", { class: "soft" }, `and ${row.images - 4} more`));
  } catch (error) {
    place.replaceChildren(none("The server does not answer.", "broken"));
  }
}

async function fillPicture(slot, card, k, count) {
  const reply = await fetch(`api/image/${card.dataset.row}/${k}`);
  if (!reply.ok) {
    slot.textContent = (await reply.json()).error;
    slot.classList.add("broken");
    return;
  }
  const address = URL.createObjectURL(await reply.blob());
  const made = element("img", { src: address, tabindex: 0, "data-large": `api/image/${card.dataset.row}/${k}?large=true`,
    alt: `Image ${count > 1 ? `${k + 1} of ${count} ` : ""}of ${card.dataset.id}` });
  made.onload = () => URL.revokeObjectURL(address);
  slot.replaceWith(made);
}

function cardOf(row, { ranked, compared: other }) {
  const verdict = row.score === null ? "no score" : row.kept ? "kept" : "dropped";
  const kind = row.score === null ? "is-error" : row.kept ? "is-kept" : "";
  const several = row.texts.length > 1;
  const compared = (value) => (other ? element("span", { class: "chip compared" }, `${other}: ${short(value)}`) : null);
  const head = element("div", { class: "line" }, element("span", { class: "score" }, short(row.score)), element("span", { class: "chip verdict" }, verdict),
    row.rank === null ? null : element("span", { class: "soft" }, `top ${percent((row.rank + 1) / ranked)}`), compared(row.compared));
  const texts = row.texts.flatMap((text) => [
    element("div", { class: "words asked", hidden: true }),
    several ? element("div", { class: "line soft" }, `score ${short(text.score)}, ${plural(text.tokens || 0, "tokens")}`) : null,
    text.text === null ? null : element("div", { class: "words" }, words(text.text)),
    text.error === null ? null : element("div", { class: "words error" }, text.error)]);
  const facts = [several || row.texts[0].tokens === null ? null : plural(row.texts[0].tokens, "tokens"), row.source, row.label].filter(Boolean);
  const meta = element("div", { class: "meta" }, facts.join(" · "), element("br"), element("code", {}, row.id), several ? null : ` text ${row.texts[0].index}`);
  return element("article", { class: kind, tabindex: -1, "data-row": row.row, "data-id": row.id, "aria-label": `${verdict}, score ${short(row.score)}, ${row.id}` },
    element("div", { class: "pictures" }, element("div", { class: "none" }, "…")), element("div", { class: "said" }, head, ...texts,
      row.more ? element("div", { class: "soft" }, `and ${plural(row.more, "texts")} more`) : null, meta, marking(row)));
}

// ---- Keeping and rejecting by hand: a mark is shown when the server has written it.

const MARKS = [[true, "Keep", "a"], [false, "Reject", "d"]];

function marking(row) {
  const buttons = MARKS.map(([keep, text]) => element("button", { type: "button", "data-keep": String(keep), "aria-pressed": row.mark === keep,
    onclick: (event) => mark(event.target.closest("article"), keep) }, text));
  return element("div", { class: "marking", role: "group", "aria-label": "By hand" }, ...buttons);
}

async function post(path, body) {
  const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

async function mark(card, keep) {
  const button = card.querySelector(`[data-keep="${keep}"]`);
  const now = button.getAttribute("aria-pressed") === "true" ? null : keep;
  try {
    await post("api/mark", { row: Number(card.dataset.row), keep: now });
    card.querySelectorAll("[data-keep]").forEach((own) => own.setAttribute("aria-pressed", now !== null && own === button));
    $("problem").hidden = true;
    showSummary();
  } catch (error) { tell(error); }
}

async function writeIds() {
  try {
    const { path, samples, texts } = await post("api/kept_ids", cutOf());
    $("written").textContent = `${plural(samples, "samples")}, ${plural(texts, "texts")} → ${path}`;
    return true;
  } catch (error) { tell(error); }
  return false;
}

function drawRows(sides, answers, size) {
  pictures.disconnect();
  const parts = answers.map((answer) => answer.rows.length ? element("div", { class: "cards" }, ...answer.rows.map((row) => cardOf(row, answer)))
    : element("div", { class: "card empty" }, state.page ? "No more." : "Nothing here: loosen the filters, or move the cut."));
  const titles = { above: "Just above the cut: kept", below: "Just below the cut: dropped" };
  if (sides.length === 1) $("rows").replaceChildren(...parts);
  else $("rows").replaceChildren(element("div", { class: "sides" }, ...parts.map((part, i) =>
    element("div", { id: sides[i] }, element("h3", {}, titles[sides[i]]), part))));
  document.querySelectorAll("#rows article").forEach((card) => pictures.observe(card));
  const total = Math.max(...answers.map((answer) => answer.total));
  const [from, to] = [state.page * size + 1, Math.min(total, (state.page + 1) * size)];
  const seen = from > to ? "none" : `${whole(from)} to ${whole(to)} of ${whole(total)}`;
  const of = { above: "on each side, counted from the cut", random: `drawn with seed ${state.seed}; r draws others` }[sides[0]];
  $("where").textContent = [seen, of].filter(Boolean).join(", ");
  $("before").disabled = state.page === 0;
  $("after").disabled = to >= total;
}

function turn(by) {
  if ($(by < 0 ? "before" : "after").disabled) return;
  state.page += by;
  changed("page");
}

// ---- What the user does

function typed(id, read) { // a number in a field: taken over while it is typed, if it is one
  $(id).addEventListener("input", () => {
    const text = $(id).value.trim().replace(",", ".");
    const value = Number(text);
    const fine = (text !== "" || id === "low" || id === "high") && Number.isFinite(value) && read(value, text) !== false;
    $(id).setAttribute("aria-invalid", !fine);
  });
}

function listen() {
  typed("top", (value) => value > 0 && value <= 100 && (setCut({ top: Number((value / 100).toPrecision(12)) }, 250), true));
  typed("threshold", (value) => setCut({ threshold: value }, 250));
  for (const key of ["low", "high"]) typed(key, (value, text) => { state[key] = text; changed("filter", 350); });
  $("search").addEventListener("input", () => { state.search = $("search").value; changed("filter", 450); });
  for (const key of ["source", "label"])
    $(key).addEventListener("change", () => { state[key] = $(key).value === "" ? null : $(key).value.slice(1); changed("filter"); });
  $("errors").addEventListener("change", () => { state.errors = $("errors").checked; changed("filter"); });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); changed("filter"); });
  $("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    Object.assign(state, { source: null, label: null, low: "", high: "", search: "", errors: false });
    for (const key of ["low", "high", "search"]) $(key).value = "";
    changed("filter");
  });
  $("before").onclick = () => turn(-1);
  $("after").onclick = () => turn(1);
  $("sort").onchange = () => { state.sort = $("sort").value; state.page = 0; changed("page"); };
  $("order").onclick = () => { state.order = state.order === "down" ? "up" : "down"; state.page = 0; changed("page"); };
  $("write").onclick = writeIds;
  $("copy").onclick = async () => {
    if (summary.marks.kept + summary.marks.rejected && !(await writeIds())) return;
    getSelection().selectAllChildren($("command"));
    let done = false;
    try { await navigator.clipboard.writeText($("command").textContent); done = true; } catch { done = document.execCommand("copy"); }
    $("copy").textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  };
  addEventListener("hashchange", () => { readAddress(); showSummary(); showRows(); });
  addEventListener("keydown", key);
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), select")) return;
  const views = [...$("views").children];
  const cards = [...document.querySelectorAll("#rows article")];
  const go = (by) => {
    const now = cards.indexOf(document.activeElement);
    const next = cards[Math.min(cards.length - 1, Math.max(0, now + by))];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "center" }); }
  };
  const shift = (by) => summary && setCut({ top: Number(Math.min(1, Math.max(0.01, summary.cut.top + by)).toPrecision(6)) }, 60);
  const done = { ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), j: () => go(1), k: () => go(-1), "[": () => shift(-0.01), "]": () => shift(0.01),
    "/": () => $("search").focus(), ...Object.fromEntries(MARKS.map(([keep, , letter]) => [letter, () => {
      const card = document.activeElement.closest("#rows article");
      if (card) mark(card, keep);
    }])), r: () => { state.seed += 1; state.view = "random"; state.errors = false; state.page = 0; changed("page"); } };
  if (event.key in done) done[event.key]();
  else if (views[Number(event.key) - 1]) views[Number(event.key) - 1].click();
  else return;
  event.preventDefault();
}

chart = makeChart();
readAddress();
listen();
showSummary();
showRows();
