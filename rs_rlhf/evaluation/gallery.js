// Text of a run is only ever set as text, never as HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
const WAYS = { right_to_wrong: "right → wrong", wrong_to_right: "wrong → right" };

function card(flip) {
  const lost = flip.direction === "right_to_wrong";
  const picture = flip.image === null ? element("div", { class: "soft" }, flip.why)
    : element("div", {}, element("img", { src: DATA.images[flip.image], alt: `image of ${flip.id}` }));
  const part = (name, text, kind = "") => [element("dt", {}, name), element("dd", { class: kind }, text || "(nothing)")];
  return element("article", { class: flip.direction }, picture, element("div", {}, element("dl", {},
    ...part(DATA.a, flip.a, lost ? "right" : "wrong"), ...part(DATA.b, flip.b, lost ? "wrong" : "right"),
    ...part("right answer", flip.references), ...part("question", flip.prompt)),
  element("div", { class: "soft" }, [WAYS[flip.direction], ...flip.types, flip.id].join(" · "))));
}

function buttons(label, choices, chosen) { // choices: [value, text]
  const made = choices.map(([value, text]) => element("button", { type: "button", "aria-pressed": String(value === ""),
    onclick: (event) => {
      made.forEach((button) => button.setAttribute("aria-pressed", button === event.target));
      chosen(value);
    } }, text));
  return element("div", { class: "controls", role: "group", "aria-label": label }, element("span", { class: "soft" }, label), ...made);
}

function task({ name, total, flips }) {
  const wanted = { direction: "", type: "" };
  const cards = flips.map(card);
  const told = element("p", { class: "soft", role: "status" });
  const show = () => {
    let count = 0;
    flips.forEach((flip, i) => {
      const fits = (!wanted.direction || flip.direction === wanted.direction) && (!wanted.type || flip.types.includes(wanted.type));
      cards[i].hidden = !fits;
      count += fits;
    });
    told.textContent = `${count} shown of ${total}` + (flips.length < total ? ` (the page holds ${flips.length}, spread evenly)` : "");
  };
  const count = (test) => flips.filter(test).length;
  const types = [...new Set(flips.flatMap((flip) => flip.types))].sort();
  const section = element("section", {}, element("h2", {}, name));
  if (flips.length) section.append(buttons("direction", [["", "all"], ...Object.entries(WAYS).map(([key, text]) =>
    [key, `${text} (${count((flip) => flip.direction === key)})`])], (value) => { wanted.direction = value; show(); }));
  if (types.length > 1) section.append(buttons("type", [["", "all"], ...types.map((type) =>
    [type, `${type} (${count((flip) => flip.types.includes(type))})`])], (value) => { wanted.type = value; show(); }));
  section.append(told, element("div", { class: "cards" }, ...cards));
  show();
  return section;
}

document.getElementById("head").append(element("h1", {}, `${DATA.a} - ${DATA.b}`),
  element("ul", {}, ...DATA.verdicts.map((text) => element("li", {}, text)), ...DATA.notes.map((text) => element("li", { class: "soft" }, text))));
document.getElementById("main").append(...DATA.tasks.map(task));
