// Keeps the fleet page fresh: asks for the same address every 15 seconds, and shows what has changed and how old the page is.
"use strict";
document.addEventListener("DOMContentLoaded", function () {
  const REFRESH_MS = 15000;
  const age = document.getElementById("age");
  let etag = document.getElementById("fleet").dataset.etag;
  let at = new Date(age.querySelector("time").dateTime);
  let received = performance.now();
  let failed = false;
  let busy = false;

  function show() {
    const seconds = Math.max(0, Math.round((performance.now() - received) / 1000));
    const old = seconds < 120 ? seconds + " s" : Math.floor(seconds / 60) + " min";
    const problem = failed ? "; the exporter cannot be reached" : "";
    age.textContent = "as of " + at.toISOString().slice(11, 19) + " UTC, " + old + " ago" + problem;
  }

  // What has the focus, so that it is found again in what replaces it.
  function focused(region) {
    const element = document.activeElement;
    if (!region.contains(element) || element === region) {
      return null;
    }
    if (element.name === "worker") {
      return '[name="worker"][value="' + CSS.escape(element.value) + '"]';
    }
    const key = element.dataset.key ? '[data-key="' + element.dataset.key + '"]' : null;
    const href = element.getAttribute("href");
    const link = href !== null ? 'a[href="' + CSS.escape(href) + '"]' : null;
    return key || link || (element.className ? "." + element.classList[0] : null);
  }

  function replace(fresh) {
    for (const region of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(region.id);
      if (next === null || next.innerHTML === region.innerHTML) {
        continue;
      }
      const scrolled = region.querySelector(".wide");
      const left = scrolled === null ? 0 : scrolled.scrollLeft;
      const selector = focused(region);
      const chosen = new Set(Array.from(region.querySelectorAll('[name="worker"]:checked'), (each) => each.value));
      region.replaceChildren(...document.importNode(next, true).childNodes);
      for (const each of region.querySelectorAll('[name="worker"]')) {
        each.checked = chosen.has(each.value);
      }
      const wide = region.querySelector(".wide");
      if (wide !== null) {
        wide.scrollLeft = left;
      }
      const element = selector === null ? null : region.querySelector(selector);
      if (element !== null) {
        element.focus({ preventScroll: true });
      }
    }
  }

  async function refresh() {
    if (busy || document.hidden) {
      return;
    }
    busy = true;
    try {
      const response = await fetch(location.href, { headers: { "If-None-Match": etag }, cache: "no-store" });
      if (response.status === 200) {
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        replace(fresh);
        etag = fresh.getElementById("fleet").dataset.etag;
        at = new Date(fresh.querySelector("#age time").dateTime);
      } else if (response.status === 304) {
        at = new Date(response.headers.get("Date") || Date.now());
      } else {
        throw new Error("status " + response.status);
      }
      received = performance.now();
      failed = false;
    } catch (error) {
      failed = true;
    }
    busy = false;
    show();
  }

  show();
  setInterval(show, 1000);
  setInterval(refresh, REFRESH_MS);
  document.addEventListener("visibilitychange", refresh);
});
