"use strict";
// Boxes cut from stored maps: the same level sets, components and extents as in pipeline/arrays/boxes.py, and the same
// fusion with a figure/ground map as in pipeline/arrays/figure_ground.py. Numbers are rounded to float32 where the
// Python code works in float32. What remains is the order of summation, far below a pixel.
const camlakeBoxes = (() => {
  const f32 = Math.fround;
  const CONSTANT = 1e-6;
  const AREA_STEPS = 2 ** 30;

  // Returns {h, w, values: Float32Array} of a stored map {h, w, lo, hi, q: base64 of the bytes}.
  function decode(map) {
    const text = atob(map.q);
    const values = new Float32Array(text.length);
    const low = f32(map.lo);
    const span = f32(f32(map.hi) - low);
    for (let i = 0; i < values.length; i++) {
      values[i] = low + f32(f32(text.charCodeAt(i) / 255) * span);
    }
    return { h: map.h, w: map.w, values };
  }

  // Returns a map scaled to [0, 1]; a constant map, but for rounding, becomes ones.
  function minMax(map) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of map.values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const span = f32(high - low);
    const constant = !(span > f32(CONSTANT * Math.max(Math.abs(low), Math.abs(high))));
    const values = map.values.map((value) => (constant ? 1 : f32(value - low) / span));
    return { h: map.h, w: map.w, values };
  }

  // For each of n new cells along an axis of `size` cells: the two old cells around its centre and the second's share.
  function steps(size, n) {
    return Array.from({ length: n }, (_, i) => {
      const at = Math.max(((i + 0.5) * size) / n - 0.5, 0);
      const first = Math.min(Math.floor(at), size - 1);
      return [first, Math.min(first + 1, size - 1), at - first];
    });
  }

  // Returns a map of h × w cells, bilinear between cell centres.
  function resized(map, h, w) {
    if (map.h === h && map.w === w) return map;
    const columns = steps(map.w, w);
    const values = new Float32Array(h * w);
    steps(map.h, h).forEach(([top, bottom, down], y) => {
      columns.forEach(([left, right, along], x) => {
        const at = (row, column) => map.values[row * map.w + column];
        const above = at(top, left) * (1 - along) + at(top, right) * along;
        const below = at(bottom, left) * (1 - along) + at(bottom, right) * along;
        values[y * w + x] = above * (1 - down) + below * down;
      });
    });
    return { h, w, values };
  }

  function fuse(heat, figure, combination) {
    const h = Math.max(heat.h, figure.h);
    const w = Math.max(heat.w, figure.w);
    const a = minMax(resized(heat, h, w)).values;
    const b = minMax(resized(figure, h, w)).values;
    const values = a.map((n, i) => {
      const product = f32(n * b[i]);
      const mean = f32(f32(n + b[i]) / 2);
      return { product, sum: mean, sumprod: mean + product }[combination];
    });
    return minMax({ h, w, values });
  }

  // Returns the map that the rule cuts: fused where `figure` is a stored map, scaled to [0, 1] under the rule auto.
  function surface(heat, figure, rule) {
    const cells = figure ? fuse(decode(heat), decode(figure), rule.combination) : decode(heat);
    return rule.name === "auto" ? minMax(cells) : cells;
  }

  // Labels each cell inside with the first cell of its component, row by row; -1 outside. Two neighbours belong
  // together, and two diagonal cells do where the saddle between them is inside.
  function componentsOf(heights, h, w) {
    const parent = Int32Array.from(heights, (height, i) => (height >= 0 ? i : -1));
    const root = (i) => {
      while (parent[i] !== i) i = parent[i] = parent[parent[i]];
      return i;
    };
    const join = (i, j) => {
      const [one, other] = [root(i), root(j)];
      parent[Math.max(one, other)] = Math.min(one, other);
    };
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const a = y * w + x;
        if (x + 1 < w && heights[a] >= 0 && heights[a + 1] >= 0) join(a, a + 1);
        if (y + 1 < h && heights[a] >= 0 && heights[a + w] >= 0) join(a, a + w);
        if (x + 1 < w && y + 1 < h) {
          const [p, q, r, s] = [heights[a], heights[a + 1], heights[a + w], heights[a + w + 1]];
          if (p >= 0 && s >= 0 && q < 0 && r < 0 && p * s >= q * r) join(a, a + w + 1);
          if (q >= 0 && r >= 0 && p < 0 && s < 0 && q * r >= p * s) join(a + 1, a + w);
        }
      }
    }
    return parent.map((up, i) => (up < 0 ? -1 : root(i)));
  }

  // The mean of p / q over an interval; both are linear, given at the two ends, and 0 <= p <= q.
  function meanQuotient(p0, p1, q0, q1) {
    if (!(q0 > 0) || !(q1 > 0)) [q0, q1] = [Math.max(q0, 1e-300), Math.max(q1, 1e-300)];
    const [dp, dq] = [p1 - p0, q1 - q0];
    const z = dq / q0;
    const mean =
      Math.abs(z) < 1e-3
        ? (p0 * (1 - z / 2 + z ** 2 / 3 - z ** 3 / 4) + dp * (1 / 2 - z / 3 + z ** 2 / 4 - z ** 3 / 5)) / q0
        : dp / dq + ((p0 * dq - q0 * dp) / dq ** 2) * Math.log(q1 / q0);
    return Math.min(Math.max(mean, 0), 1);
  }

  // The share of a patch that the contour cuts off at corner a; b and c are its neighbours, d lies opposite.
  function corner(a, b, c, d) {
    const length = a / (a - b);
    return length * meanQuotient(Math.abs(a), 0, Math.abs(a - c), Math.abs(c + (d - c) * length));
  }

  // The share of a patch that lies on the side of the corners a and b.
  const strip = (a, b, c, d) => meanQuotient(Math.abs(a), Math.abs(b), Math.abs(a - c), Math.abs(b - d));

  // Returns [corner of a component, its share of the patch] for each piece of the patch with the corners a b / c d.
  function pieces(a, b, c, d) {
    const kind = (a >= 0 ? 1 : 0) + (b >= 0 ? 2 : 0) + (c >= 0 ? 4 : 0) + (d >= 0 ? 8 : 0);
    switch (kind) {
      case 0: return [];
      case 1: return [[0, corner(a, b, c, d)]];
      case 2: return [[1, corner(b, a, d, c)]];
      case 4: return [[2, corner(c, d, a, b)]];
      case 8: return [[3, corner(d, c, b, a)]];
      case 3: return [[0, strip(a, b, c, d)]];
      case 12: return [[2, strip(c, d, a, b)]];
      case 5: return [[0, strip(a, c, b, d)]];
      case 10: return [[1, strip(b, d, a, c)]];
      case 14: return [[1, 1 - corner(a, b, c, d)]];
      case 13: return [[0, 1 - corner(b, a, d, c)]];
      case 11: return [[0, 1 - corner(c, d, a, b)]];
      case 7: return [[0, 1 - corner(d, c, b, a)]];
      case 9: return a * d >= b * c
        ? [[0, 1 - corner(b, a, d, c) - corner(c, d, a, b)]]
        : [[0, corner(a, b, c, d)], [3, corner(d, c, b, a)]];
      case 6: return b * c >= a * d
        ? [[1, 1 - corner(a, b, c, d) - corner(d, c, b, a)]]
        : [[1, corner(b, a, d, c)], [2, corner(c, d, a, b)]];
      default: return [[0, 1]];
    }
  }

  // Returns the area of each component by its label, in cells. Patches at the edge are halves and quarters.
  function areasOf(heights, labels, h, w) {
    const areas = new Map();
    for (let y = 0; y <= h; y++) {
      for (let x = 0; x <= w; x++) {
        const [top, bottom] = [Math.max(y - 1, 0) * w, Math.min(y, h - 1) * w];
        const [left, right] = [Math.max(x - 1, 0), Math.min(x, w - 1)];
        const cells = [top + left, top + right, bottom + left, bottom + right];
        const size = (y === 0 || y === h ? 0.5 : 1) * (x === 0 || x === w ? 0.5 : 1);
        for (const [at, share] of pieces(...cells.map((cell) => heights[cell]))) {
          const label = labels[cells[at]];
          areas.set(label, (areas.get(label) ?? 0) + size * share);
        }
      }
    }
    return areas;
  }

  // Returns xmin, ymin, xmax, ymax of one component, in cells.
  function extentOf(heights, labels, label, h, w) {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const share = (i, j) => Math.abs(heights[i]) / Math.max(Math.abs(heights[i]) + Math.abs(heights[j]), 1e-38);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const i = y * w + x;
        if (labels[i] !== label) continue;
        box[0] = Math.min(box[0], x ? (labels[i - 1] < 0 ? x + 0.5 - share(i, i - 1) : x - 0.5) : 0);
        box[1] = Math.min(box[1], y ? (labels[i - w] < 0 ? y + 0.5 - share(i, i - w) : y - 0.5) : 0);
        box[2] = Math.max(box[2], x + 1 < w ? (labels[i + 1] < 0 ? x + 0.5 + share(i, i + 1) : x + 1.5) : w);
        box[3] = Math.max(box[3], y + 1 < h ? (labels[i + w] < 0 ? y + 0.5 + share(i, i + w) : y + 1.5) : h);
      }
    }
    return box;
  }

  // Returns the boxes of a surface at a threshold, in pixels of an image of `width` × `height`, the largest component
  // first; only that one unless `all`. A surface with no positive value has none.
  function cut(map, threshold, width, height, all = false) {
    const { h, w, values } = map;
    const highest = values.reduce((most, value) => Math.max(most, value), -Infinity);
    if (!(highest > 0)) return [];
    const level = f32(highest * f32(threshold));
    const heights = values.map((value) => value - level);
    const labels = componentsOf(heights, h, w);
    let found = [...new Set(labels)].filter((label) => label >= 0);
    if (found.length > 1) {
      const areas = areasOf(heights, labels, h, w);
      const steps = (label) => Math.round(areas.get(label) * AREA_STEPS);
      found.sort((one, other) => steps(other) - steps(one) || one - other);
    }
    if (!all) found = found.slice(0, 1);
    const scale = [width / w, height / h, width / w, height / h];
    return found.map((label) => extentOf(heights, labels, label, h, w).map((side, i) => side * scale[i]));
  }

  return { surface, cut, resized };
})();
