// Charts in a page are finished SVG. Here pointer and arrow keys tell their values, and a button saves one as a file.
const TIP = element("div", { id: "tip", role: "status", hidden: true });
document.body.append(TIP);

function number(value) {
  if (typeof value !== "number") return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
}

function showTip(text, x, y) {
  TIP.textContent = text;
  TIP.hidden = false;
  const box = TIP.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  TIP.style.left = `${Math.max(4, x + 14 + box.width > width ? x - box.width - 14 : x + 14)}px`;
  TIP.style.top = `${Math.max(4, y - box.height - 10)}px`;
}
const hideTip = () => { TIP.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// The vertices of a curve, in pixels of the plotting area; an exponential moving average of them is that of the values.
const vertices = (path) => path.getAttribute("d").split(/[MLZ]/).filter(Boolean).map((spot) => spot.split(",").map(Number));

function smooth(figure, weight) {
  figure.curves.forEach((curve, i) => {
    const path = figure.paths[i];
    if (!path || !curve.smooth) return;
    path.raw = path.raw || path.getAttribute("d");
    path.setAttribute("d", path.raw);
    if (!path.ghost) { path.ghost = path.cloneNode(); path.ghost.setAttribute("class", "ghost"); path.after(path.ghost); }
    path.ghost.setAttribute("opacity", weight ? 0.3 : 0);
    let [total, weights] = [0, 0];
    const moved = vertices(path).map(([x, y]) => {
      [total, weights] = [weight * total + y, weight * weights + 1];
      return `${x},${total / weights}`;
    });
    if (weight) path.setAttribute("d", `M${moved.join("L")}`);
  });
}

function save(svg, name) {
  const colours = getComputedStyle(document.documentElement);
  const copy = svg.cloneNode(true);
  copy.querySelectorAll(".cursor").forEach((cursor) => cursor.remove());
  copy.style.background = colours.getPropertyValue("--card");
  const text = new XMLSerializer().serializeToString(copy).replace(/var\((--\w+)\)/g, (_, own) => colours.getPropertyValue(own).trim());
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  element("a", { href: address, download: `${name.replace(/[^\w.-]+/g, "_")}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function tellCurves(svg, curves, paths) {
  const steps = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point[0])))].sort((a, b) => a - b);
  const places = new Map();
  curves.forEach((curve, i) => vertices(paths[i]).forEach(([x], k) => places.set(curve.points[k][0], x)));
  const cursor = element("line", { class: "cursor", y1: 0, y2: svg.querySelector(".background").getBBox().height, visibility: "hidden" });
  paths[0].parentNode.append(cursor);
  let place = steps.length - 1;
  const show = () => {
    const step = steps[place];
    const lines = curves.map((curve) => [curve, curve.points.find((point) => point[0] === step)]).filter(([, point]) => point);
    for (const [key, value] of [["x1", places.get(step)], ["x2", places.get(step)], ["visibility", "visible"]]) cursor.setAttribute(key, value);
    const box = cursor.getBoundingClientRect();
    const told = lines.map(([curve, [, value]]) => `${curve.name}: ${curve.share ? `${Number((100 * value).toFixed(1))}%` : number(value)}`);
    showTip([`step ${step}`, ...told].join("\n"), box.left, box.top + 24);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
  svg.onpointermove = svg.onpointerdown = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(paths[0].getScreenCTM().inverse()).x;
    place = steps.reduce((best, step, i) => Math.abs(places.get(step) - at) < Math.abs(places.get(steps[best]) - at) ? i : best, 0);
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

function equip(figure) {
  const svg = figure.querySelector("svg");
  figure.querySelector("button.save").onclick = () => save(svg, svg.getAttribute("aria-label").split(":")[0]);
  figure.curves = JSON.parse(figure.dataset.curves).filter((curve) => curve.points.length);
  figure.paths = [...svg.querySelectorAll(".mark-line.role-mark path")];
  if (figure.curves.length) return tellCurves(svg, figure.curves, figure.paths);
  const mark = (event) => event.target.closest(".role-mark [aria-label]");
  svg.onpointermove = (event) => (mark(event) ? showTip(mark(event).getAttribute("aria-label"), event.clientX, event.clientY) : hideTip());
  svg.onpointerleave = hideTip;
}
document.querySelectorAll("figure.chart").forEach(equip);
