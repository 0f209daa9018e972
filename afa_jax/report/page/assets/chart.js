// A line chart: lines are {x: [...], y: [...], d: [...] or nothing, look, thin}.

const MARGIN = { left: 58, right: 14, top: 12, bottom: 40 };

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const k of high / low > 1e3 ? [1] : [1, 2, 5]) {
      const tick = Number((k * 10 ** power).toPrecision(6));
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  return found;
}

function range(lines, log) {
  let low = Infinity, high = -Infinity;
  for (const { y, d } of lines) {
    y.forEach((value, i) => {
      const away = d ? d[i] : 0;
      if (log && value <= 0) return;
      low = Math.min(low, log && value - away <= 0 ? value : value - away);
      high = Math.max(high, value + away);
    });
  }
  if (low === Infinity) return log ? [0.1, 1] : [0, 1];
  if (low === high) return log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const more = log ? (high / low) ** 0.04 : (high - low) * 0.04;
  return log ? [low / more, high * more] : [low - more, high + more];
}

// The place in `line` whose step is nearest to `step`; -1 where the line has not begun or is over.
function nearest(line, step) {
  const { x } = line;
  if (!x.length || step < x[0] || step > x[x.length - 1]) return -1;
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= step) low = middle;
    else high = middle;
  }
  return step - x[low] <= x[high] - step ? low : high;
}

// Draws into `host` and gives back how steps lie on it: {steps, toStep(pixels), mark(step)}.
function chart(host, { lines, boundaries, log, xTitle, yTitle }) {
  const width = Math.max(280, host.clientWidth), height = host.clientHeight;
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const steps = unique(lines.flatMap((line) => line.x)).sort((a, b) => a - b);
  const [first, last] = steps.length > 1 ? [Math.min(0, steps[0]), steps[steps.length - 1]] : [0, steps[0] || 1];
  const [low, high] = range(lines, log);
  const scale = log ? Math.log : (value) => value;
  const atX = (x) => MARGIN.left + ((x - first) / (last - first || 1)) * (right - MARGIN.left);
  const atY = (y) => {
    const clipped = log ? Math.max(y, low) : y;
    return bottom - ((scale(clipped) - scale(low)) / (scale(high) - scale(low))) * (bottom - MARGIN.top);
  };
  const point = (x, y) => `${atX(x).toFixed(1)},${atY(y).toFixed(1)}`;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const tick of log ? logTicks(low, high) : ticks(low, high, 5)) {
    svg.append(
      draw("line", { class: "grid", x1: MARGIN.left, x2: right, y1: atY(tick), y2: atY(tick) }),
      draw("text", { x: MARGIN.left - 8, y: atY(tick) + 4, "text-anchor": "end" }, number(tick)),
    );
  }
  for (const tick of ticks(first, last, Math.max(2, width / 110))) {
    svg.append(draw("text", { x: atX(tick), y: bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  for (const step of boundaries.filter((step) => step > first && step < last)) {
    svg.append(draw("line", { class: "boundary", x1: atX(step), x2: atX(step), y1: MARGIN.top, y2: bottom }));
  }
  svg.append(
    draw("text", { x: (MARGIN.left + right) / 2, y: height - 4, "text-anchor": "middle" }, xTitle),
    draw("text", { transform: `translate(13 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle),
  );
  for (const { x, y, d, look } of lines) {
    if (!d) continue;
    const edge = [...x.map((at, i) => point(at, y[i] + d[i])), ...x.map((at, i) => point(at, y[i] - d[i])).reverse()];
    svg.append(draw("polygon", { class: `band ${look}`, points: edge.join(" ") }));
  }
  for (const { x, y, look, thin } of lines) {
    svg.append(draw("polyline", { class: `curve ${look}${thin ? " thin" : ""}`, points: x.map((at, i) => point(at, y[i])).join(" ") }));
    if (x.length === 1) svg.append(draw("circle", { class: `dot ${look}`, cx: atX(x[0]), cy: atY(y[0]), r: 4 }));
  }
  if (!lines.length) {
    svg.append(draw("text", { class: "empty", x: (MARGIN.left + right) / 2, y: height / 2, "text-anchor": "middle" }, "nothing to draw"));
  }
  const cross = draw("g");
  svg.append(cross);
  host.replaceChildren(svg);
  return {
    steps,
    toStep: (pixels) => first + ((pixels - MARGIN.left) / (right - MARGIN.left)) * (last - first),
    mark(step) {
      cross.replaceChildren();
      if (step === null) return;
      cross.append(draw("line", { class: "cross", x1: atX(step), x2: atX(step), y1: MARGIN.top, y2: bottom }));
      for (const line of lines) {
        const i = nearest(line, step);
        if (i >= 0) cross.append(draw("circle", { class: `dot ${line.look}`, cx: atX(line.x[i]), cy: atY(line.y[i]), r: 4 }));
      }
    },
  };
}
