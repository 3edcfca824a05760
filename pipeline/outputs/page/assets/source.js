"use strict";
// Where pictures come from: out of this page, or from the server of `camlake view`.
// Both have find(query, offset, count) → {total, images} and picture(entry, large) → the URL of a picture, or null.
const camlakeSource = (() => {
  const setup = JSON.parse(document.getElementById("setup").textContent);

  const ORDERS = {
    sample: () => 0,
    "score-down": (a, b) => b.score - a.score,
    "score-up": (a, b) => a.score - b.score,
    "prob-down": (a, b) => b.prob - a.prob,
    "prob-up": (a, b) => a.prob - b.prob,
    "area-down": (a, b) => b.area - a.area,
    "area-up": (a, b) => a.area - b.area,
    "iou-up": (a, b) => (a.iou ?? 2) - (b.iou ?? 2),
    uri: (a, b) => (a.uri < b.uri ? -1 : a.uri > b.uri ? 1 : 0),
  };

  // query: {text, label, least, most, order}
  function matches(entry, query) {
    if (query.label && !entry.boxes.some((box) => entry.classes[box.class].label === query.label)) return false;
    if (entry.score < query.least || entry.score > query.most) return false;
    const text = query.text.toLowerCase();
    return (
      !text ||
      entry.uri.toLowerCase().includes(text) ||
      entry.boxes.some((box) => entry.classes[box.class].label.toLowerCase().includes(text))
    );
  }

  function ofPage() {
    const all = JSON.parse(document.getElementById("images").textContent);
    const find = async (query, offset, count) => {
      const found = all.filter((entry) => matches(entry, query)).sort(ORDERS[query.order]);
      return { total: found.length, images: found.slice(offset, offset + count) };
    };
    const parsed = new Promise((done) => {
      if (document.readyState !== "loading") done();
      else document.addEventListener("DOMContentLoaded", () => done());
    });
    const picture = async (entry) => {
      const id = `picture-${entry.id}`;
      if (!document.getElementById(id)) await parsed;
      const text = document.getElementById(id)?.textContent;
      return text ? `data:image/webp;base64,${text.trim()}` : null;
    };
    return { find, picture, near: null };
  }

  function ofServer() {
    const ask = async (path, values) => {
      const answer = await fetch(`${path}?${new URLSearchParams(values)}`);
      if (!answer.ok) throw new Error((await answer.text()) || `status ${answer.status}`);
      return answer.json();
    };
    const find = (query, offset, count) => ask("api/images", { ...query, offset, count });
    const picture = async (entry, large) => `picture/${entry.id}?size=${large ? "large" : "small"}`;
    const near = setup.features ? (entry) => ask("api/near", { id: entry.id }) : null;
    return { find, picture, near };
  }

  return { setup, ...(setup.live ? ofServer() : ofPage()) };
})();
