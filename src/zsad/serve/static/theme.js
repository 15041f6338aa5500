// Before anything is drawn: the colours that were chosen last, else the system's.
(() => {
  const key = "zsad-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = localStorage.getItem(key);
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
      if (dark !== system.matches) { // back to what the system prefers, and with it from then on
        delete root.dataset.theme;
        localStorage.removeItem(key);
        return;
      }
      root.dataset.theme = dark ? "light" : "dark";
      localStorage.setItem(key, root.dataset.theme);
    });
  });
})();
