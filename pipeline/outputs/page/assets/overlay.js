"use strict";
// What lies over a picture: its class map, as light or in colours, and its boxes.
const camlakeOverlay = (() => {
  const BOX = "#ff7a1a";
  const OTHER = "#ffc46b";
  const TRUTH = "#2fd69a";
  const FIELD_CELLS = 72;
  // Nine equidistant colours from a map's lowest value to its highest.
  const COLORS = [
    [48, 18, 59], [70, 104, 222], [40, 170, 237], [26, 222, 188], [122, 254, 84],
    [208, 234, 52], [254, 170, 50], [228, 70, 16], [122, 4, 3],
  ];

  const surfaces = new WeakMap();

  // Returns the surface that boxes of one class are cut from; null where the output does not store it.
  function surfaceOf(entry, index, rule) {
    const one = entry.classes[index];
    if (!one || !one.heat || (rule.combination && !entry.figure)) return null;
    if (!surfaces.has(one)) {
      surfaces.set(one, camlakeBoxes.surface(one.heat, rule.combination ? entry.figure : null, rule));
    }
    return surfaces.get(one);
  }

  // Returns the boxes [{index, xyxy, score}] of a picture: those stored, or cut anew where `threshold` is a number.
  // `only` is the index of the one class that is wanted, or null for each class with a stored box.
  function boxesOf(entry, rule, threshold, only) {
    const wanted = only === null ? [...new Set(entry.boxes.map((box) => box.class))] : [only];
    return wanted.flatMap((index) => {
      const stored = entry.boxes.filter((box) => box.class === index);
      const surface = threshold === null ? null : surfaceOf(entry, index, rule);
      if (!surface) return stored.map((box) => ({ index, xyxy: box.xyxy, score: box.score }));
      const least = rule.min_area * entry.width * entry.height;
      const area = (xyxy) => (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]);
      const cut = camlakeBoxes.cut(surface, threshold, entry.width, entry.height, rule.all);
      return cut.filter((xyxy) => area(xyxy) >= least).map((xyxy) => ({ index, xyxy, score: null }));
    });
  }

  function colorAt(share) {
    const at = share * (COLORS.length - 1);
    const first = Math.min(Math.floor(at), COLORS.length - 2);
    return COLORS[first].map((from, i) => from + (COLORS[first + 1][i] - from) * (at - first));
  }

  // Paints a map into a small canvas: "light" darkens the picture where the map is low, "heat" lays colours on it.
  function field(surface, look) {
    const side = Math.max(surface.h, surface.w, FIELD_CELLS);
    const { h, w, values } = camlakeBoxes.resized(surface, side, side);
    const highest = values.reduce((most, value) => Math.max(most, value), 0);
    const image = new ImageData(w, h);
    values.forEach((value, i) => {
      const share = highest > 0 ? Math.max(value, 0) / highest : 0;
      const heat = look === "heat";
      const [red, green, blue] = heat ? colorAt(share) : [9, 10, 14];
      image.data.set([red, green, blue, 255 * (heat ? 0.18 + 0.5 * share : 0.8 * (1 - share) ** 1.4)], 4 * i);
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [w, h];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  function outline(context, box, color, line, dash) {
    const [x0, y0, x1, y1] = box;
    const inset = line / 2;
    for (const [width, stroke] of [[line + 2, "rgba(10, 12, 16, .5)"], [line, color]]) {
      context.lineWidth = width;
      context.strokeStyle = stroke;
      context.setLineDash(dash);
      context.strokeRect(x0 + inset, y0 + inset, Math.max(x1 - x0 - line, 1), Math.max(y1 - y0 - line, 1));
    }
  }

  // Draws on `canvas`, which covers a frame of the size [width, height] in CSS pixels with the picture contained in it.
  // view: {rule, look, threshold, only, line}
  function draw(canvas, entry, [width, height], view) {
    const dense = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const context = canvas.getContext("2d");
    const scale = Math.min(width / entry.width, height / entry.height);
    const [left, top] = [(width - entry.width * scale) / 2, (height - entry.height * scale) / 2];
    context.setTransform(dense, 0, 0, dense, left * dense, top * dense);
    const first = view.only ?? entry.boxes[0]?.class ?? 0;
    const surface = view.look === "plain" ? null : surfaceOf(entry, first, view.rule);
    if (surface) {
      context.imageSmoothingQuality = "high";
      context.drawImage(field(surface, view.look), 0, 0, entry.width * scale, entry.height * scale);
    }
    const placed = (xyxy) => xyxy.map((side) => side * scale);
    for (const truth of entry.truth) outline(context, placed(truth), TRUTH, view.line, [3 * view.line, 2 * view.line]);
    const boxes = boxesOf(entry, view.rule, view.threshold, view.only);
    for (const box of boxes.reverse()) {
      outline(context, placed(box.xyxy), box.index === first ? BOX : OTHER, box.index === first ? view.line : 1, []);
    }
  }

  return { draw, boxesOf, surfaceOf };
})();
