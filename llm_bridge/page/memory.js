// What this tab remembers over a reload. Browsers may refuse to keep anything: then the page works, and remembers nothing.

export function recall(name) {
  try { return sessionStorage.getItem(name); } catch { return null; }
}

export function retain(name, value) {
  try { sessionStorage.setItem(name, value); } catch { /* refused, or no room */ }
}
