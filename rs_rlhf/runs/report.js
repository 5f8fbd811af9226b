// Draws the page of `rs-rlhf report` from the JSON in #data. Text from a run is only ever set as text, never as HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = ["one", "two", "three"];

function number(value) {
  if (typeof value !== "number") return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
}

function short(value) { // of an axis
  const size = Math.abs(value);
  return size >= 1e9 ? `${value / 1e9}G` : size >= 1e6 ? `${value / 1e6}M` : size >= 1e4 ? `${value / 1e3}k` : number(value);
}

const percent = (value) => `${Number((100 * value).toFixed(1))}%`;
const told = (curve, value) => (curve.percent ? percent : number)(value);

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => raw <= factor * power * 1.0001);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(10)));
  return out;
}

// ---- The tooltip

function showTip(text, x, y) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, x + 14 + box.width > width ? x - box.width - 14 : x + 14)}px`;
  tip.style.top = `${Math.max(4, y - box.height - 10)}px`;
}
const hideTip = () => { $("tip").hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// Redraws a figure's picture at the width that it has, so that its text keeps its size; a hidden one when it opens.
function responsive(figure, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(figure.clientWidth) - 24;
    if (now > 60 && now !== width) draw((width = now));
  }).observe(figure);
}

// ---- Curves. A curve is {name, points: [[step, value]], not_finite, side, colour, dashed}.

function range(curves) {
  const values = curves.flatMap((curve) => curve.points.map((point) => point[1]));
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const room = (high - low) * 0.06;
  return [low - room, high + room];
}

function summary(curve) {
  const points = curve.points;
  if (!points.length) return `${curve.name}: no finite value`;
  const [first, last] = [points[0], points[points.length - 1]];
  const end = points.length > 1 ? ` to ${told(curve, last[1])} at step ${last[0]}` : "";
  return `${curve.name}: ${told(curve, first[1])} at step ${first[0]}${end}`;
}

function chart(title, curves, height = 190) {
  curves = curves.map((curve, i) => ({ side: "left", colour: COLOURS[i % 3], dashed: i > 0, ...curve }));
  const drawn = curves.filter((curve) => curve.points.length);
  const broken = curves.reduce((sum, curve) => sum + curve.not_finite, 0);
  const last = drawn.length === 1 ? `last ${number(drawn[0].points[drawn[0].points.length - 1][1])}` : null;
  const svg = element("svg", { role: "img", tabindex: 0, height });
  const legend = curves.length > 1 || curves[0].dashed ? element("div", { class: "legend" }, ...curves.map((curve) =>
    element("span", { class: curve.colour }, element("i", { class: curve.dashed ? "dashed" : "" }), curve.label || curve.name))) : null;
  const figure = element("figure", { class: "chart" }, element("figcaption", {}, element("h3", {}, title),
    last && element("span", {}, last), broken ? element("span", { class: "wrong" }, `not finite at ${broken} steps`) : null), legend, svg);
  svg.setAttribute("aria-label", `Chart of ${title}. ${curves.map(summary).join("; ")}. Arrow keys move along the steps.`);
  if (drawn.length) responsive(figure, (width) => drawCurves(svg, drawn, width, height));
  else svg.append(element("text", { x: 46, y: height / 2 }, "no finite value"));
  return figure;
}

function drawCurves(svg, curves, width, height) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const two = curves.some((curve) => curve.side === "right");
  const [left, right, top, bottom] = [46, width - (two ? 46 : 10), 10, height - 24];
  const steps = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point[0])))].sort((a, b) => a - b);
  const [from, to] = [steps[0], steps[steps.length - 1]];
  const x = (step) => from === to ? (left + right) / 2 : left + (step - from) / (to - from) * (right - left);
  const scales = {};
  for (const side of two ? ["left", "right"] : ["left"]) {
    const own = curves.filter((curve) => curve.side === side);
    const [low, high] = range(own);
    scales[side] = (value) => bottom - (value - low) / (high - low) * (bottom - top);
    for (const tick of ticks(low, high, 5)) {
      const y = scales[side](tick);
      if (side === "left") svg.append(element("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      const at = side === "left" ? { x: left - 6, "text-anchor": "end" } : { x: right + 6 };
      svg.append(element("text", { ...at, y: y + 4, style: two && own[0] ? `fill: var(--${own[0].colour})` : "" }, own[0].percent ? percent(tick) : short(tick)));
    }
  }
  const inner = from === to ? [] : ticks(from, to, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger);
  const marks = [from, ...inner.filter((tick) => x(tick) - left > 40 && right - x(tick) > 40), ...(to > from ? [to] : [])];
  for (const tick of marks)
    svg.append(element("text", { x: x(tick), y: height - 8, "text-anchor": tick === to && to > from ? "end" : "middle" }, short(tick)));
  for (const curve of curves) {
    const spots = curve.points.map(([step, value]) => [x(step), scales[curve.side](value)]);
    const line = spots.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
    const own = element("g", { class: curve.colour }, element("path", { class: curve.dashed ? "curve dashed" : "curve", d: line }));
    if (spots.length < 25) own.append(...spots.map(([cx, cy]) => element("circle", { class: "dot", cx, cy, r: 2.6 })));
    svg.append(own);
  }
  const cursor = element("g");
  svg.append(cursor);
  hover(svg, cursor, { curves, scales, steps, x, top, bottom });
}

function hover(svg, cursor, { curves, scales, steps, x, top, bottom }) {
  let place = steps.length - 1;
  const show = () => {
    const step = steps[place];
    const lines = [`step ${step}`];
    cursor.replaceChildren(element("line", { class: "cursor", x1: x(step), x2: x(step), y1: top, y2: bottom }));
    for (const curve of curves) {
      const point = curve.points.find((candidate) => candidate[0] === step);
      if (!point) continue;
      lines.push(`${curve.label || curve.name}: ${told(curve, point[1])}`);
      cursor.append(element("circle", { class: `dot ${curve.colour}`, cx: x(step), cy: scales[curve.side](point[1]), r: 4.5 }));
    }
    const box = svg.getBoundingClientRect();
    showTip(lines.join("\n"), box.left + x(step), box.top + top + 20);
  };
  const leave = () => { cursor.replaceChildren(); hideTip(); };
  svg.onpointermove = svg.onpointerdown = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    place = steps.reduce((best, step, i) => Math.abs(x(step) - at) < Math.abs(x(steps[best]) - at) ? i : best, 0);
    show();
  };
  svg.onpointerleave = svg.onblur = leave;
  svg.onkeydown = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length };
    if (!(event.key in moves)) return;
    event.preventDefault();
    place = Math.min(steps.length - 1, Math.max(0, place + moves[event.key]));
    show();
  };
}

// ---- Histograms: a column per step, a cell per bin, darker where more of the step's values lie.

function histogram({ title, name, low, high, steps, counts }) {
  const height = 200;
  const svg = element("svg", { role: "img", tabindex: 0, height });
  const total = counts.map((own) => own.reduce((a, b) => a + b, 0));
  const bins = counts[0].length;
  const edge = (bin) => number(low + (high - low) * bin / bins);
  const mean = (i) => counts[i].reduce((sum, n, bin) => sum + n * (low + (high - low) * (bin + 0.5) / bins), 0) / total[i];
  const ends = [0, steps.length - 1].map((i) => total[i] ? `about ${number(Number(mean(i).toPrecision(2)))}` : "none");
  svg.setAttribute("aria-label", `Histograms of ${name} (${title}) by step, from ${number(low)} to ${number(high)}; mean ${ends[0]} at step ${steps[0]}, ${ends[1]} at step ${steps[steps.length - 1]}.`);
  const figure = element("figure", { class: "histogram" }, element("figcaption", {}, element("h3", {}, `${name} · ${title}`),
    element("span", {}, "across: step, up: value; darker: more of the step's rows")), svg);
  let place = -1;
  responsive(figure, (width) => {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const [left, right, top, bottom] = [46, width - 10, 10, height - 24];
    const wide = (right - left) / steps.length;
    const tall = (bottom - top) / bins;
    const most = Math.max(...counts.map((own, i) => Math.max(...own) / (total[i] || 1)));
    counts.forEach((own, i) => own.forEach((count, bin) => {
      const [x, y, share] = [left + i * wide, bottom - (bin + 1) * tall, count / (total[i] || 1)];
      const text = `step ${steps[i]}\n${name} ${edge(bin)} to ${edge(bin + 1)}: ${count} of ${total[i]}`;
      const opacity = count ? 0.12 + 0.88 * share / most : 0.03;
      svg.append(element("rect", { class: "cell", x: x + 0.5, y: y + 0.5, width: Math.max(1, Math.min(wide, 90) - 1), height: tall - 1,
        opacity, onpointermove: (event) => showTip(text, event.clientX, event.clientY), onpointerleave: hideTip }));
    }));
    for (const tick of ticks(low, high, 5))
      svg.append(element("text", { x: left - 6, y: bottom - (tick - low) / (high - low) * (bottom - top) + 4, "text-anchor": "end" }, number(tick)));
    const every = Math.ceil(steps.length / Math.max(1, Math.floor((right - left) / 56)));
    steps.forEach((step, i) => {
      if (i % every === 0) svg.append(element("text", { x: left + i * wide + Math.min(wide, 90) / 2, y: height - 8, "text-anchor": "middle" }, step));
    });
    svg.onblur = hideTip;
    svg.onkeydown = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      place = Math.min(steps.length - 1, Math.max(0, place + move));
      const lines = counts[place].map((n, bin) => n ? `${edge(bin)} to ${edge(bin + 1)}: ${n}` : "").filter(Boolean);
      const box = svg.getBoundingClientRect();
      showTip([`step ${steps[place]}, ${total[place]} rows`, ...lines.reverse()].join("\n"), box.left + left + (place + 0.5) * wide, box.bottom);
    };
  });
  return figure;
}

// ---- Tables

function picture(place, about) {
  if (place === null || place === undefined) return element("span", { class: "soft" }, "no image");
  return element("img", { src: DATA.images[place], alt: `Thumbnail of the image of: ${String(about || "").slice(0, 80)}` });
}

function cell(name, row) {
  const value = row[name];
  if (name === "image") return element("td", {}, picture(value, row.prompt || row.chosen));
  if (typeof value === "boolean") return element("td", {}, verdict(value));
  if (typeof value === "number") return element("td", { class: "number" }, number(value));
  if (value === null || value === undefined) return element("td", { class: "soft" }, "–");
  return element("td", { class: "text" }, element("div", { class: "words" }, value === "" ? "(empty)" : value));
}

function verdict(value) {
  return element("span", { class: value ? "right" : "wrong" }, value ? "✓ right" : "✗ wrong");
}

function options(values, texts) {
  return values.map((value, i) => element("option", { value }, texts[i]));
}

function sampleTable({ title, columns, steps }) {
  const body = element("tbody");
  const show = (place) => {
    select.value = String(place);
    [before.disabled, after.disabled] = [place === 0, place === steps.length - 1];
    body.replaceChildren(...steps[place].rows.map((row) => element("tr", {}, ...columns.map((name) => cell(name, row)))));
  };
  const select = element("select", { "aria-label": `Step of ${title}`, onchange: () => show(Number(select.value)) },
    ...options(steps.map((_, i) => i), steps.map((entry) => `step ${entry.step}`)));
  const before = element("button", { type: "button", onclick: () => show(Number(select.value) - 1) }, "‹ earlier");
  const after = element("button", { type: "button", onclick: () => show(Number(select.value) + 1) }, "later ›");
  show(steps.length - 1);
  const heads = columns.map((name) => element("th", { scope: "col" }, name.replaceAll("_", " ")));
  return element("div", { class: "card table" }, element("div", { class: "controls" }, before, select, after),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)));
}

function answer(own) {
  if (!own) return element("td", { class: "soft" }, "–");
  const told = ["score", "reward"].filter((name) => typeof own[name] === "number").map((name) => `${name} ${number(own[name])}`);
  return element("td", { class: "text" }, element("div", { class: "words" }, own.completion || "(empty)"),
    typeof own.correct === "boolean" ? verdict(own.correct) : null, element("div", { class: "soft" }, told.join(", ")));
}

function asked(row) {
  const solution = typeof row.solution === "string" ? element("div", { class: "soft" }, `solution: ${row.solution}`) : null;
  return element("div", { class: "asked" }, picture(row.image, row.prompt),
    element("div", {}, element("div", { class: "words" }, row.prompt || "(empty)"), solution));
}

// All prompts: a row per prompt, a column per step. One prompt: its score over the steps, and a row per step.
function followTable({ title, steps, rows }) {
  const place = element("div");
  const names = rows.map((row, i) => `${i + 1}: ${String(row.solution || row.prompt || "").slice(0, 60)}`);
  const all = () => element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "prompt"),
    ...steps.map((step) => element("th", { scope: "col" }, `step ${step}`)))), element("tbody", {}, ...rows.map((row) =>
    element("tr", {}, element("th", { scope: "row", class: "row" }, asked(row)), ...steps.map((step) => answer(row.answers[step]))))));
  const one = (row) => element("table", {}, element("tbody", {}, ...steps.map((step) =>
    element("tr", {}, element("th", { scope: "row" }, `step ${step}`), answer(row.answers[step])))));
  const scores = (row) => ["score", "reward"].map((name) => ({ name, not_finite: 0, points: steps
    .filter((step) => row.answers[step] && typeof row.answers[step][name] === "number").map((step) => [step, row.answers[step][name]]) }))
    .filter((curve) => curve.points.length > 1);
  const scroll = (table) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table);
  const show = () => {
    const row = rows[Number(select.value)];
    if (!row) return place.replaceChildren(scroll(all()));
    const curves = scores(row);
    place.replaceChildren(element("div", { class: "charts" }, asked(row),
      curves.length ? chart("its score over the evaluations", curves, 150) : null), scroll(one(row)));
  };
  const select = element("select", { "aria-label": `Prompt of ${title} to follow`, onchange: show },
    ...options([-1, ...rows.keys()], ["all prompts", ...names]));
  show();
  return element("div", { class: "card follow" }, element("div", { class: "controls" }, element("span", {}, "Follow"), select), place);
}

function evaluationTable(rows) {
  const percent = (value) => (typeof value === "number" ? `${(100 * value).toFixed(1)}%` : "–");
  const cells = (row) => [row.task, row.what, String(row.n), percent(row.accuracy),
    row.interval ? `${percent(row.interval[0])} – ${percent(row.interval[1])}` : "–"];
  const heads = ["task", "what", "n", "accuracy", "95% interval"].map((name) => element("th", { scope: "col" }, name));
  return element("div", { class: "card" }, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Evaluations" },
    element("table", { id: "evaluations-table" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {},
      ...rows.map((row) => element("tr", {}, ...cells(row).map((text) => element("td", {}, text))))))));
}

// ---- The page

function section(id, title, ...children) {
  $("nav").append(element("li", {}, element("a", { href: `#${id}` }, title)));
  $("main").append(element("section", {}, element("h2", { id }, title), ...children));
}

function isConstant({ curves }) {
  return curves.every((curve) => !curve.not_finite && curve.points.every((point) => point[1] === curves[0].points[0][1]));
}

function metrics({ name, charts }) {
  const still = charts.filter(isConstant);
  const moving = charts.filter((entry) => !isConstant(entry));
  const grid = (entries) => element("div", { class: "charts" }, ...entries.map((entry) => chart(entry.name, entry.curves.map((curve) =>
    curve.name.startsWith("evaluation") ? { ...curve, colour: "two", dashed: true } : { ...curve, colour: "one", dashed: false }))));
  section(`metrics-${name}`, name, moving.length ? grid(moving) : null,
    still.length ? element("details", {}, element("summary", {}, `${still.length} that did not move`), grid(still)) : null);
}

function page() {
  $("head").append(element("h1", {}, DATA.title), element("dl", { class: "facts" }, ...DATA.facts.map(([name, text]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, text)))));
  const lines = [...DATA.warnings.map((text) => element("p", { class: "warning", role: "alert" }, `⚠ ${text}`)),
    ...DATA.statements.map((text) => element("p", { class: "note" }, text)), ...DATA.notes.map((text) => element("p", { class: "soft" }, text))];
  const pairs = DATA.compared.map(({ name, left, right }) => chart(name, [
    { ...left, label: `${left.name} (left axis)`, colour: "one" }, { ...right, label: `${right.name} (right axis)`, colour: "two", side: "right", percent: true }], 260));
  if (lines.length || pairs.length)
    section("headline", DATA.compared.length && !DATA.compared[0].right.name.includes("audit") ? "At a glance" : "Reward beside accuracy",
      ...lines, element("div", { class: "charts wide" }, ...pairs));
  if (DATA.evaluations.length) section("evaluations", "Evaluations", evaluationTable(DATA.evaluations));
  DATA.samples.forEach((entry, i) => section(`samples-${i}`, entry.title, followTable(entry)));
  DATA.groups.forEach(metrics);
  if (DATA.histograms.length) section("histograms", "Histograms", element("div", { class: "charts" }, ...DATA.histograms.map(histogram)));
  DATA.tables.forEach((entry, i) => section(`table-${i}`, entry.title, sampleTable(entry)));
  $("foot").append(element("p", {}, `Written by rs-rlhf report. ${DATA.caps}`));
}
page();
