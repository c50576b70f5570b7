"use strict";
// The catalogue reads well without this: it adds the search by need and the filters.
(() => {
  const { table, answers } = JSON.parse(document.getElementById("needs").textContent);
  const box = document.getElementById("need");
  const said = document.getElementById("said");
  const list = document.getElementById("answers");

  const item = (answer) => {
    const row = document.createElement("li");
    const link = document.createElement("a");
    link.href = `#${answer.to}`;
    link.textContent = answer.title;
    const status = document.createElement("span");
    status.className = answer.status === "not built" ? "tag waits" : "tag better";
    status.textContent = answer.status;
    const line = document.createElement("span");
    line.className = "sub";
    line.textContent = answer.line;
    row.append(link, " ", status, line);
    return row;
  };

  const search = () => {
    const found = instarFind.find(box.value, table, 8);
    list.replaceChildren(...found.map((one) => item(answers[one.entry])));
    if (box.value.trim() === "" || found.some((one) => one.sure)) said.textContent = "";
    else said.textContent = `Nothing here answers that outright. ${found.length ? "The nearest:" : "Try other words, or browse by clock, domain and task below."}`;
  };

  const entries = Array.from(document.querySelectorAll(".entry"));
  const filters = Array.from(document.querySelectorAll("[data-filter]"));
  const fits = (entry, name, value) => {
    if (value === "") return true;
    if (name === "words") return value.toLowerCase().split(/\s+/).every((word) => entry.textContent.toLowerCase().includes(word));
    const has = entry.dataset[name].split("|");
    return has.includes(value) || (name === "domains" && has.includes("any"));
  };
  const filter = () => {
    let left = 0;
    for (const entry of entries) {
      const stays = filters.every((field) => fits(entry, field.dataset.filter, field.value.trim()));
      entry.classList.toggle("gone", !stays);
      left += stays;
    }
    document.getElementById("left").textContent = left === entries.length ? "" : `${left} of ${entries.length} entries`;
  };

  // A link to an entry that a filter hides shows everything again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target === null || !target.classList.contains("gone")) return;
    for (const field of filters) field.value = "";
    filter();
    target.scrollIntoView();
  });

  for (const part of document.querySelectorAll(".seek, .filters")) part.hidden = false;
  box.addEventListener("input", search);
  for (const field of filters) field.addEventListener("input", filter);
})();
