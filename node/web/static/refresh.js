// Keeps the page current: every 4 s the same address is fetched and its <main> replaced, unless someone is
// reading with a selection or has paused it. Without this script the page works and is reloaded by hand.
"use strict";
(() => {
  const button = document.getElementById("refresh");
  let live = true;
  button.hidden = false;
  button.addEventListener("click", () => {
    live = !live;
    button.setAttribute("aria-pressed", String(live));
    button.textContent = live ? "Live" : "Paused";
  });
  const busy = () => !live || document.hidden || String(getSelection()) !== "";
  setInterval(async () => {
    if (busy()) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok || busy()) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const [now, next] = [document.getElementById("main"), page.getElementById("main")];
      if (next && now.innerHTML !== next.innerHTML && !now.contains(document.activeElement)) now.replaceWith(next);
      document.querySelector("header time").replaceWith(page.querySelector("header time"));
      button.textContent = "Live";
    } catch {
      button.textContent = "Node does not answer";
    }
  }, 4000);
})();
