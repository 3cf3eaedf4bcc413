// The file's text: its lines are numbered, and its problems are said while it is typed.

const form = document.getElementById("file");
const text = document.getElementById("text");
const numbers = form.querySelector(".numbers");
const problems = document.getElementById("problems");
const before = text.defaultValue;
let wrong = new Set([...problems.querySelectorAll("li:not(.warn) [data-line]")].map((a) => Number(a.dataset.line)));
let timer;
let asked = 0;

function number() {
  const count = text.value.split("\n").length;
  numbers.replaceChildren(
    ...Array.from({ length: count }, (_, at) => {
      if (!wrong.has(at + 1)) return `${at + 1}\n`;
      const bold = document.createElement("b");
      bold.textContent = `${at + 1}\n`;
      return bold;
    }),
  );
  numbers.scrollTop = text.scrollTop;
}

function show(diagnostics) {
  const list = document.createElement("ul");
  list.className = "plain problems";
  list.lang = "en";
  for (const one of diagnostics) {
    const item = document.createElement("li");
    if (one.severity === "warning") item.className = "warn";
    if (one.line > 0) {
      const link = document.createElement("a");
      link.href = "#text";
      link.dataset.line = one.line;
      link.dataset.column = one.column;
      link.textContent = `${one.line}:${one.column}`;
      item.append(link, " ");
    }
    item.append(one.message);
    if (one.help) {
      const help = document.createElement("span");
      help.className = "soft";
      help.textContent = one.help;
      item.append(document.createElement("br"), help);
    }
    list.append(item);
  }
  wrong = new Set(diagnostics.filter((one) => one.severity === "error").map((one) => one.line));
  problems.replaceChildren(...(diagnostics.length > 0 ? [list] : []));
  number();
}

async function check() {
  const mine = ++asked;
  try {
    const answer = await fetch("/api/v1/config/check", {
      method: "POST",
      headers: { "content-type": "application/yaml", "x-csrf-token": form.elements.csrf.value },
      body: text.value,
    });
    if (answer.ok && mine === asked) show((await answer.json()).diagnostics);
  } catch {
    // The box does not answer now: it is checked when the form is sent.
  }
}

text.addEventListener("input", () => {
  number();
  clearTimeout(timer);
  timer = setTimeout(check, 500);
});
text.addEventListener("scroll", () => (numbers.scrollTop = text.scrollTop));
// Tab leaves the field, as everywhere; a new line begins as deep as the one before it.
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
  const start = text.value.lastIndexOf("\n", text.selectionStart - 1) + 1;
  const indent = /^ */.exec(text.value.slice(start, text.selectionStart))[0];
  if (indent === "" || !document.execCommand("insertText", false, `\n${indent}`)) return;
  event.preventDefault();
});
problems.addEventListener("click", (event) => {
  const link = event.target.closest("[data-line]");
  if (!link) return;
  event.preventDefault();
  const lines = text.value.split("\n");
  const line = Number(link.dataset.line) - 1;
  const start = lines.slice(0, line).reduce((sum, one) => sum + one.length + 1, 0);
  text.focus();
  text.setSelectionRange(start + Number(link.dataset.column) - 1, start + (lines[line]?.length ?? 0));
  text.scrollTop = (text.scrollHeight / lines.length) * Math.max(0, line - 5);
});
let sent = false;
form.addEventListener("submit", () => (sent = true));
addEventListener("beforeunload", (event) => {
  if (!sent && text.value !== before) event.preventDefault();
});
number();
