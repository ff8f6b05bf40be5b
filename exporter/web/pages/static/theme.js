// The theme switch: as the system, light, dark. Loaded in the head, so that a page never flashes in the other theme.
"use strict";
(function () {
  const root = document.documentElement;
  const names = { "": "as the system", light: "light", dark: "dark" };
  let chosen = "";
  try {
    chosen = localStorage.getItem("theme") || "";
  } catch (error) {
    // Storage may be forbidden; the switch then lasts for this page.
  }
  if (!(chosen in names)) {
    chosen = "";
  }
  root.dataset.theme = chosen;
  document.addEventListener("DOMContentLoaded", function () {
    const button = document.getElementById("theme");
    const show = function () {
      button.textContent = "Theme: " + names[chosen];
    };
    button.hidden = false;
    show();
    button.addEventListener("click", function () {
      const order = Object.keys(names);
      chosen = order[(order.indexOf(chosen) + 1) % order.length];
      root.dataset.theme = chosen;
      try {
        localStorage.setItem("theme", chosen);
      } catch (error) {
        // As above.
      }
      show();
    });
  });
})();
