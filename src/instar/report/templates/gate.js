"use strict";
// The page of a judgement reads well without this: it adds a search over the broken items.
(() => {
  const finder = document.querySelector(".finder");
  if (finder === null) return;
  const search = finder.querySelector("input[type=search]");
  const always = finder.querySelector("input[type=checkbox]");
  const output = finder.querySelector("output");
  const groups = document.querySelectorAll(".group");
  const items = Array.from(document.querySelectorAll(".item"), (item) => [item, item.textContent.toLowerCase()]);
  const opened = Array.from(document.querySelectorAll(".group, .others"), (details) => [details, details.open]);

  const find = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    const idle = search.value.trim() === "" && !(always && always.checked);
    let count = 0;
    for (const [item, text] of items) {
      const shown = words.every((word) => text.includes(word)) && !(always && always.checked && item.dataset.always === "no");
      item.classList.toggle("gone", !shown);
      count += shown;
    }
    for (const group of groups) group.classList.toggle("gone", !idle && group.querySelector(".item:not(.gone)") === null);
    for (const [details, open] of opened) details.open = idle ? open : true;
    output.textContent = idle ? "" : `${count} of ${items.length} shown items`;
  };

  finder.hidden = false;
  search.addEventListener("input", find);
  if (always) always.addEventListener("change", find);
})();
