// Keys of the tab "Label": they press its buttons, unless a text is being typed.
() => {
  const buttons = {
    ArrowLeft: "choose_left", 1: "choose_left", ArrowRight: "choose_right", 2: "choose_right",
    t: "choose_tie", b: "choose_both_bad", u: "choose_undo",
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, textarea, select, [contenteditable=true]");
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const name = buttons[event.key] || buttons[event.key.toLowerCase()];
    const button = name && document.getElementById(name);
    if (!button || button.disabled || !button.getClientRects().length) return;
    event.preventDefault();
    event.stopPropagation();
    button.click();
  }, true);
}
