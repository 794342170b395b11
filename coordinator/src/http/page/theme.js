// Before anything is drawn: the theme that was chosen, so that a dark page does not begin white.
"use strict";
try {
  const { theme } = JSON.parse(localStorage.getItem("settings")) ?? {};
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* nothing was chosen */ }
