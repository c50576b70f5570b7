"use strict";
// The page of a change of encoder reads well without this: pointing at an arm lights up its line.
(() => {
  const picture = document.querySelector("#curve svg");
  if (picture === null) return;
  const parts = picture.querySelectorAll("[id^=backfill-arm-], [id^=backfill-held-], [id^=backfill-band-]");
  const light = (row, on) => {
    row.classList.toggle("lit", on);
    for (const part of parts) part.classList.toggle("dim", on && part.id.slice(part.id.lastIndexOf("-") + 1) !== row.dataset.line);
  };
  for (const row of document.querySelectorAll("[data-line]")) {
    for (const name of ["mouseenter", "focusin"]) row.addEventListener(name, () => light(row, true));
    for (const name of ["mouseleave", "focusout"]) row.addEventListener(name, () => light(row, false));
  }
})();
