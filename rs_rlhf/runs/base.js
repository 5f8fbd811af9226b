// What the scripts of all pages share. Text is only ever set as text, never as HTML.
"use strict";

function element(name, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|circle|rect|text|title|clipPath)$/.test(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("aria-") && value !== null) made.setAttribute(key, String(value));
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const words = (text) => (String(text).trim() === "" ? "(blank)" : text);

// A picture is shown large when it is clicked, or Enter is pressed on it.
function enlarge(picture) {
  const dialog = element("dialog", { onclick: () => dialog.close(), onclose: () => dialog.remove() },
    element("img", { src: picture.dataset.large || picture.src, alt: picture.alt }));
  document.body.append(dialog);
  dialog.showModal();
}
for (const kind of ["click", "keydown"])
  document.addEventListener(kind, (event) => {
    if (event.target.closest("main img") && (kind === "click" || event.key === "Enter")) enlarge(event.target);
  });
