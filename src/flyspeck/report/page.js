"use strict";
// Shows the images that carry the chosen tag and says how many there are.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const images = [...document.querySelectorAll(".image")];
  const status = document.getElementById("shown");
  const show = (tag) => {
    let count = 0;
    for (const image of images) {
      const wanted = tag === "" || image.dataset.tags.split("|").includes(tag);
      image.hidden = !wanted;
      count += wanted ? 1 : 0;
    }
    status.textContent = `${count} of ${images.length} images shown.`;
  };
  form.addEventListener("change", (event) => show(event.target.value));
  form.addEventListener("submit", (event) => event.preventDefault());
  // a browser may restore the choice of the last visit
  show(new FormData(form).get("show") ?? "");
})();
