"use strict";
// Shows the pictures that carry the chosen tag and says how many there are.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const pictures = [...document.querySelectorAll(".picture")];
  const status = document.getElementById("shown");
  const show = (tag) => {
    let count = 0;
    for (const picture of pictures) {
      const wanted = tag === "" || picture.dataset.tags.split("|").includes(tag);
      picture.hidden = !wanted;
      count += wanted ? 1 : 0;
    }
    status.textContent = `${count} of ${pictures.length} pictures shown.`;
  };
  form.addEventListener("change", (event) => show(event.target.value));
  form.addEventListener("submit", (event) => event.preventDefault());
  // a browser may restore the choice of the last visit
  show(new FormData(form).get("show") ?? "");
})();
