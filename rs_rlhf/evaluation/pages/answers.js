// Cards of answers, by question type and by what they are. Text of a run is only ever set as text, never as HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);

function card({ id, kind, types, image, why, parts }) { // parts: [name, text, class]
  const picture = image === null ? element("div", { class: "soft" }, why)
    : element("div", {}, element("img", { src: DATA.images[image], alt: `image of ${id}`, tabindex: 0 }));
  const shown = parts.flatMap(([name, text, own]) => [element("dt", {}, name), element("dd", { class: own }, words(text))]);
  return element("article", { class: kind }, picture, element("div", {}, element("dl", {}, ...shown),
    element("div", { class: "soft" }, [DATA.kinds[kind], ...types, id].join(" · "))));
}

function buttons(label, choices, chosen) { // choices: [value, text]
  const made = choices.map(([value, text]) => element("button", { type: "button", "aria-pressed": String(value === ""),
    onclick: (event) => {
      made.forEach((button) => button.setAttribute("aria-pressed", button === event.target));
      chosen(value);
    } }, text));
  return element("div", { class: "controls", role: "group", "aria-label": label }, element("span", { class: "soft" }, label), ...made);
}

function task({ total, cards: entries, none }) {
  if (!entries.length) return element("p", { class: "soft", role: "status" }, none);
  const wanted = { kind: "", type: "" };
  const cards = entries.map(card);
  const told = element("p", { class: "soft", role: "status" });
  const show = () => {
    let count = 0;
    entries.forEach((entry, i) => {
      const fits = (!wanted.kind || entry.kind === wanted.kind) && (!wanted.type || entry.types.includes(wanted.type));
      cards[i].hidden = !fits;
      count += fits;
    });
    told.textContent = `${count} shown of ${total}` + (entries.length < total ? ` (the page holds ${entries.length}, spread evenly)` : "");
  };
  const count = (test) => entries.filter(test).length;
  const types = [...new Set(entries.flatMap((entry) => entry.types))].sort();
  const section = element("div", {});
  if (Object.keys(DATA.kinds).length > 1) section.append(buttons("direction", [["", "all"], ...Object.entries(DATA.kinds).map(([key, text]) =>
    [key, `${text} (${count((entry) => entry.kind === key)})`])], (value) => { wanted.kind = value; show(); }));
  if (types.length > 1) section.append(buttons("type", [["", "all"], ...types.map((type) =>
    [type, `${type} (${count((entry) => entry.types.includes(type))})`])], (value) => { wanted.type = value; show(); }));
  section.append(told, element("div", { class: "cards" }, ...cards));
  show();
  return section;
}

document.querySelectorAll("[data-task]").forEach((place) => place.replaceWith(task(DATA.tasks[Number(place.dataset.task)])));
