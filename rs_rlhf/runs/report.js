// The tables of samples of `rs-rlhf report`, from the JSON in #data. Text from a run is only ever set as text.
const DATA = JSON.parse(document.getElementById("data").textContent);

// ---- Tables

function picture(place, about) {
  if (place === null || place === undefined) return element("span", { class: "soft" }, "no image");
  return element("img", { src: DATA.images[place], tabindex: 0, alt: `Thumbnail of the image of: ${String(about || "").slice(0, 80)}` });
}

function cell(name, row) {
  const value = row[name];
  if (name === "image") return element("td", {}, picture(value, row.prompt || row.chosen));
  if (typeof value === "boolean") return element("td", {}, verdict(value));
  if (typeof value === "number") return element("td", { class: "number" }, number(value));
  if (value === null || value === undefined) return element("td", { class: "soft" }, "–");
  return element("td", { class: "text" }, element("div", { class: "words" }, words(value)));
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
  return element("td", { class: "text" }, element("div", { class: "words" }, words(own.completion ?? "")),
    typeof own.correct === "boolean" ? verdict(own.correct) : null, element("div", { class: "soft" }, told.join(", ")));
}

function asked(row) {
  const solution = typeof row.solution === "string" ? element("div", { class: "soft" }, `solution: ${row.solution}`) : null;
  return element("div", { class: "asked" }, picture(row.image, row.prompt),
    element("div", {}, element("div", { class: "words" }, words(row.prompt ?? "")), solution));
}

// All prompts: a row per prompt, a column per step. One prompt: its score over the steps, and a row per step.
function followTable({ title, steps, rows }, i) {
  const place = element("div");
  const names = rows.map((row, i) => `${i + 1}: ${String(row.solution || row.prompt || "").slice(0, 60)}`);
  const all = () => element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "prompt"),
    ...steps.map((step) => element("th", { scope: "col" }, `step ${step}`)))), element("tbody", {}, ...rows.map((row) =>
    element("tr", {}, element("th", { scope: "row", class: "row" }, asked(row)), ...steps.map((step) => answer(row.answers[step]))))));
  const one = (row) => element("table", {}, element("tbody", {}, ...steps.map((step) =>
    element("tr", {}, element("th", { scope: "row" }, `step ${step}`), answer(row.answers[step])))));
  const scroll = (table) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table);
  const show = () => {
    const row = rows[Number(select.value)];
    if (!row) return place.replaceChildren(scroll(all()));
    const made = document.getElementById(`score-${i}-${select.value}`);
    place.replaceChildren(element("div", { class: "charts" }, asked(row), made && made.content.cloneNode(true)), scroll(one(row)));
    place.querySelectorAll("figure.chart").forEach(equip);
  };
  const select = element("select", { "aria-label": `Prompt of ${title} to follow`, onchange: show },
    ...options([-1, ...rows.keys()], ["all prompts", ...names]));
  show();
  return element("div", { class: "card follow" }, element("div", { class: "controls" }, element("span", {}, "Follow"), select), place);
}

// ---- The page

for (const [kind, make] of [["follow", (i) => followTable(DATA.samples[i], i)], ["table", (i) => sampleTable(DATA.tables[i])]])
  document.querySelectorAll(`[data-${kind}]`).forEach((place) => place.replaceWith(make(Number(place.dataset[kind]))));

const slider = document.getElementById("smoothing");
if (slider) {
  const move = () => {
    slider.closest("p").querySelector("output").textContent = slider.value;
    document.querySelectorAll("section[id^=metrics] figure.chart").forEach((figure) => smooth(figure, Number(slider.value)));
  };
  slider.oninput = move;
  move();
}
