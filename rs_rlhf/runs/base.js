// What the scripts of all pages share. Text is only ever set as text, never as HTML.
"use strict";

function element(name, attributes = {}, ...children) {
  const svg = /^(svg|g|path|line|circle|rect|text|title|clipPath)$/.test(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
