"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs, count = runs.name.length, $ = (id) => document.getElementById(id);
  const word = (column, i) => runs[column].levels[runs[column].codes[i]];
  const link = (i) => runs.page[i] ? `${runs.name[i].split("_")[0]}.html#${runs.name[i]}` : "";
  const open = (i) => { if (i !== undefined && link(i)) location.href = link(i); };
  const element = (tag, text, type) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (type) made.className = type;
    return made;
  };
  const rounded = (x) => x === null ? "n/a" : Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3);
  const aged = (m) => m === null ? "n/a" : m < 0 ? `${(40 + m * 4.348).toFixed(1)} weeks gest.`
    : m < 24 ? `${m.toFixed(1)} months` : `${(m / 12).toFixed(1)} years`;

  const order = new Intl.Collator(undefined, { numeric: true });

  const plotly = () => {
    if (window.Plotly) return window.Plotly;
    const program = document.createElement("script");
    program.textContent = $("plotly").textContent;
    document.head.append(program);
    $("plotly").remove();
    return window.Plotly;
  };

  // ---- plots: one way to draw them all, in the reader's idle time, the first on screen first
  const AXIS = { automargin: true, gridcolor: "#e4e8eb", zeroline: false, linecolor: "#8a97a3", ticks: "outside", tickcolor: "#8a97a3", exponentformat: "power" };
  const layoutOf = (figure) => {
    const layout = {
      font: { family: "system-ui, 'Liberation Sans', Arial, sans-serif", size: 13, color: "#17212b" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { t: 30, r: 12, b: 50, l: 60 },
      modebar: { bgcolor: "rgba(255,255,255,0)", color: "#8a97a3", activecolor: "#0b5c8a" }, hoverlabel: { bgcolor: "#ffffff", bordercolor: "#55636f", font: { color: "#17212b" }, namelength: -1, align: "left" },
      ...structuredClone(figure.layout),
    };
    for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = { ...AXIS, ...layout[key] };
    const entries = figure.data.filter((t) => t.showlegend !== false && t.type !== "heatmap" && t.name);
    if (entries.length > 1) {
      const letters = entries.reduce((sum, t) => sum + Math.min(t.name.length, 60) + 8, 0);
      layout.showlegend = true;
      layout.legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemsizing: "constant", ...layout.legend };
      layout.height += 22 * Math.ceil(letters / 120);
    } else layout.showlegend = false;
    return layout;
  };
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const traceOf = (trace, layout) => {
    const made = { ...trace };
    if (trace.customdata) {
      made.text = trace.customdata.map((i) => runs.name[i]);
      made.hovertemplate = `<b>%{text}</b><br>${(layout.xaxis.title?.text) || "x"}: %{x}<br>${(layout.yaxis.title?.text) || "y"}: %{y}<extra>%{fullData.name}</extra>`;
    }
    return made;
  };
  const draw = (figure, canvas) => {
    const layout = layoutOf(figure), first = !canvas.classList.contains("js-plotly-plot");
    const config = { ...CONFIG, toImageButtonOptions: { format: "svg", filename: `bmex-${canvas.parentElement.dataset.figure || "explore"}` } };
    canvas.style.minHeight = `${layout.height}px`;
    const drawn = plotly().react(canvas, figure.data.map((t) => traceOf(t, layout)), layout, config);
    canvas.points = undefined;
    if (first) {
      canvas.on("plotly_click", (event) => open(event.points[0].customdata));
      canvas.addEventListener("keydown", (event) => walk(canvas, event));
    }
    return drawn;
  };
  // Arrow keys go from point to point, from left to right; Enter opens the report.
  const walk = (canvas, event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!canvas.points) {
      canvas.points = [];
      canvas.data.forEach((trace, curveNumber) => {
        if (trace.customdata && trace.type !== "box") trace.x.forEach((x, pointNumber) => canvas.points.push({ x, y: trace.y[pointNumber], curveNumber, pointNumber, run: trace.customdata[pointNumber], panel: trace.xaxis || "x" }));
      });
      canvas.points.sort((a, b) => a.panel < b.panel ? -1 : a.panel > b.panel ? 1 : a.x - b.x);
      canvas.at = -1;
    }
    if (!canvas.points.length) return;
    if (event.key === "Enter" && canvas.at >= 0) open(canvas.points[canvas.at].run);
    if (!step) return;
    event.preventDefault();
    canvas.at = (canvas.at + step + canvas.points.length) % canvas.points.length;
    const point = canvas.points[canvas.at], panel = canvas.data[point.curveNumber];
    plotly().Fx.hover(canvas, [{ curveNumber: point.curveNumber, pointNumber: point.pointNumber }], [(panel.xaxis || "x") + (panel.yaxis || "y")]);
    canvas.parentElement.querySelector(".said").textContent = `${runs.name[point.run]}, ${word("site", point.run)}: ${rounded(point.x)}, ${rounded(point.y)}`;
  };
  const waiting = [];
  for (const holder of document.querySelectorAll("figure[data-figure]")) {
    const variants = data.figures[holder.dataset.figure], canvas = holder.querySelector(".canvas");
    const select = holder.querySelector("select");
    const chosen = () => variants[select ? select.value : ""] ?? Object.values(variants)[0];
    canvas.style.minHeight = `${chosen().layout.height}px`;
    if (select) select.addEventListener("change", () => draw(chosen(), canvas));
    waiting.push({ holder, work: () => draw(chosen(), canvas) });
  }

  // ---- explore any measure
  const BLUE = "#0072B2", ORANGE = "#D55E00";
  const STYLE = { before: { color: ORANGE, symbol: "circle-open" }, after: { color: BLUE, symbol: "circle" }, "": { color: BLUE, symbol: "circle" } };
  const measure = $("explore-measure");
  data.measures.forEach((m, i) => measure.append(new Option(m.label, i)));
  const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // no markup for plotly
  const cut = (text) => text.length > 24 ? text.slice(0, 23) + "\u2026" : text;
  const categories = (by, own) => {
    const levels = [...new Set(own.map((i) => word(by, i)))].sort(order.compare);
    return { type: "category", categoryorder: "array", categoryarray: levels, tickvals: levels, ticktext: levels.map((level) => literal(cut(level))), tickangle: levels.length > 5 ? -35 : 0 };
  };
  const explored = () => {
    const m = data.measures[measure.value], by = $("explore-by").value, suffix = $("explore-suffix").value;
    const own = [];
    for (let i = 0; i < count; i++) if (word("suffix", i) === suffix) own.push(i);
    const stride = Math.max(1, Math.ceil(own.length / 1500));
    const traces = m.keys.map(([when, key]) => {
      const values = runs.metrics[key], known = own.filter((i) => values[i] !== null && (by !== "age" || runs.age[i] !== null));
      if (by === "age") {
        const some = known.filter((_, k) => k % stride === 0);
        return { type: "scatter", mode: "markers", name: when || m.label, x: some.map((i) => runs.age[i] / 12), y: some.map((i) => values[i]), customdata: some,
          marker: { ...STYLE[when], size: some.length > 300 ? 5 : 8, opacity: .75 } };
      }
      return { type: "box", name: when || m.label, x: known.map((i) => word(by, i)), y: known.map((i) => values[i]), customdata: known,
        boxpoints: known.length <= 600 ? "all" : "suspectedoutliers", jitter: .5, pointpos: 0, marker: { ...STYLE[when], size: 5, opacity: .7 }, line: { width: 1.5 }, fillcolor: "rgba(0,0,0,.04)" };
    });
    const layout = { height: 420, hovermode: "closest", boxmode: "group",
      xaxis: { title: { text: by === "age" ? `Age (years)${stride > 1 ? `; every ${stride}th run` : ""}` : "" }, ...(by === "age" ? { type: "linear" } : categories(by, own)) },
      yaxis: { title: { text: m.label + (m.unit ? ` (${m.unit})` : "") } } };
    return { data: traces, layout };
  };
  const exploreCanvas = document.querySelector("#explore-figure .canvas");
  exploreCanvas.style.minHeight = "442px";
  if (data.measures.length) {
    for (const id of ["explore-measure", "explore-by", "explore-suffix"]) $(id).addEventListener("change", () => draw(explored(), exploreCanvas));
    waiting.push({ holder: $("explore-figure"), work: () => draw(explored(), exploreCanvas) });
  }
  const drawNext = () => {
    if (!waiting.length) { document.body.dataset.drawn = "all"; return; }
    const seen = (w) => { const b = w.holder.getBoundingClientRect(); return b.bottom > 0 && b.top < innerHeight; };
    const next = Math.max(0, waiting.findIndex(seen));
    waiting.splice(next, 1)[0].work();
    setTimeout(drawNext, 0);
  };

  // ---- the table of runs: filtered and sorted as a list of numbers, shown page by page
  const short = { TCTBefore: "TCT before", TCTAfter: "TCT after", HistogramDistanceBefore: "Hist. dist. before", HistogramDistanceAfter: "Hist. dist. after", ResidualShare: "Size of change" };
  const columns = [
    { title: "Run", value: (i) => runs.name[i] },
    { title: "Contrast", value: (i) => word("suffix", i) },
    { title: "Site", value: (i) => word("site", i), type: "wide" },
    { title: "Stage", value: (i) => word("stage", i) },
    { title: "Age", value: (i) => runs.age[i], text: (i) => aged(runs.age[i]), type: "number" },
    ...data.table.map((key) => ({ title: short[key] ?? key, value: (i) => runs.metrics[key][i], text: (i) => rounded(runs.metrics[key][i]), type: "number" })),
    { title: "Warnings", value: (i) => runs.n_flags[i], text: (i) => word("flags", i), type: "flags" },
  ];
  const haystack = runs.name.map((name, i) => [name, word("suffix", i), word("site", i), word("stage", i), word("sex", i), word("group", i), word("flags", i)].join(" ").toLowerCase());
  let sorted = runs.name.map((_, i) => i), shown = sorted, page = 0;
  const body = $("table").tBodies[0], head = $("table").tHead.rows[0];
  const rowOf = (i) => {
    const row = document.createElement("tr");
    for (const column of columns) {
      const cell = element("td", undefined, column.type);
      if (column === columns[0] && link(i)) {
        const anchor = element("a", runs.name[i]);
        anchor.href = link(i);
        cell.append(anchor);
      } else cell.textContent = column.text ? column.text(i) : column.value(i);
      row.append(cell);
    }
    return row;
  };
  const size = () => Number($("page-size").value);
  const show = (rows) => {
    const part = rows ?? shown.slice(page * size(), (page + 1) * size());
    body.replaceChildren(...part.map(rowOf));
    const last = Math.min(shown.length, (page + 1) * size());
    $("rows-shown").textContent = shown.length ? `${page * size() + 1} to ${last} of ${shown.length} runs` + (shown.length < count ? ` (${count} in all)` : "") : `No run fits; ${count} in all`;
    $("page-back").disabled = page === 0;
    $("page-on").disabled = last >= shown.length;
  };
  const filter = () => {
    const words = $("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const exact = ["suffix", "site", "stage"].filter((c) => $(`filter-${c}`).value).map((c) => [runs[c].codes, runs[c].levels.indexOf($(`filter-${c}`).value)]);
    const flags = $("filter-flags").value;
    shown = sorted.filter((i) => exact.every(([codes, wanted]) => codes[i] === wanted) && (flags === "" || (runs.n_flags[i] > 0) === (flags === "1")) && words.every((w) => haystack[i].includes(w)));
    page = 0;
    show();
  };
  columns.forEach((column) => {
    const cell = element("th", undefined, column.type === "number" ? "number" : ""), button = element("button", column.title);
    cell.scope = "col";
    button.type = "button";
    button.addEventListener("click", () => {
      const up = cell.getAttribute("aria-sort") !== "ascending" ? 1 : -1;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up === 1 ? "ascending" : "descending");
      const keyed = sorted.map((i) => [column.value(i), i]);
      keyed.sort(([a, i], [b, j]) => a === null || b === null ? (a === null) - (b === null) : up * (typeof a === "number" ? a - b : order.compare(a, b)) || i - j);
      sorted = keyed.map((pair) => pair[1]);
      filter();
    });
    cell.append(button);
    head.append(cell);
  });
  for (const id of ["filter-text", "filter-suffix", "filter-site", "filter-stage", "filter-flags", "page-size"]) $(id).addEventListener("input", filter);
  const turn = (step) => { page += step; show(); document.querySelector(".frame").scrollTop = 0; };
  $("page-back").addEventListener("click", () => turn(-1));
  $("page-on").addEventListener("click", () => turn(1));
  $("filter-clear").addEventListener("click", () => {
    for (const id of ["filter-text", "filter-suffix", "filter-site", "filter-stage", "filter-flags"]) $(id).value = "";
    filter();
  });
  $("download-rows").addEventListener("click", () => {
    const lines = [columns.map((c) => c.title), ...shown.map((i) => columns.map((c) => String(c.title === "Warnings" ? word("flags", i) || "n/a" : c.value(i) ?? "n/a").replace(/\s+/g, " ")))];
    const anchor = element("a");
    anchor.href = URL.createObjectURL(new Blob([lines.map((l) => l.join("\t")).join("\n") + "\n"], { type: "text/tab-separated-values" }));
    anchor.download = "bmex_runs.tsv";
    anchor.click();
    URL.revokeObjectURL(anchor.href);
  });
  const PRINTED = 500;
  addEventListener("beforeprint", () => {
    while (waiting.length) waiting.shift().work();
    $("print-note").textContent = shown.length > PRINTED ? `The first ${PRINTED} of ${shown.length} runs; all are in the tables beside this page.` : `${shown.length} of ${count} runs.`;
    show(shown.slice(0, PRINTED));
    for (const part of document.querySelectorAll("details:not([open])")) { part.open = true; part.dataset.printed = "yes"; }
  });
  addEventListener("afterprint", () => {
    show();
    for (const part of document.querySelectorAll("details[data-printed]")) { part.open = false; delete part.dataset.printed; }
  });
  show();
  document.body.dataset.ready = "yes";
  requestAnimationFrame(() => setTimeout(() => { plotly(); setTimeout(drawNext, 0); }, 50));
})();
