// Theme, search and filter. Without it the page is a plain list in the reader's own theme.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  let theme = null;
  try { theme = localStorage.getItem("paperworks-theme"); } catch { /* no storage: this page only */ }
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  function themeButton() {
    const button = byId("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("paperworks-theme", root.dataset.theme); } catch { /* as above */ }
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  }

  function search() {
    const form = byId("search");
    if (!form) return;
    const papers = [...document.querySelectorAll(".papers > li")];
    const filter = () => {
      const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
      const field = byId("field").value;
      let hits = 0;
      for (const paper of papers) {
        const hit = (!field || paper.dataset.field === field) &&
          words.every((word) => paper.dataset.text.includes(word));
        paper.hidden = !hit;
        hits += hit;
      }
      byId("hits").textContent = hits ? `${hits} found` : "nothing matches";
    };
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    addEventListener("pageshow", filter); // a browser that comes back keeps what was typed
  }

  addEventListener("DOMContentLoaded", () => { themeButton(); search(); });
})();
