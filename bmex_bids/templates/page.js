// Buttons that copy a text, buttons that show what is hidden, and where in the page the reader is.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", () => {
    const text = document.getElementById(button.dataset.copy);
    const range = document.createRange();
    range.selectNodeContents(text);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    const done = () => { button.textContent = "Copied"; };
    // execCommand works in a page opened as a file, where the clipboard may be refused.
    if (document.execCommand("copy")) done();
    else if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done);
  });
}
for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    const shown = document.getElementById(button.dataset.show).classList.toggle("shown");
    button.setAttribute("aria-expanded", shown);
    button.textContent = shown ? "Hide the still pictures" : "Show the still pictures";
  });
}
if ("IntersectionObserver" in window) {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link) continue;
      if (entry.isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-30% 0px -65% 0px" });
  for (const section of document.querySelectorAll("section[id]")) seen.observe(section);
}
