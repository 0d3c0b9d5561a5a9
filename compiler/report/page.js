"use strict";
(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const say = (text) => {
    for (const place of document.querySelectorAll(".figure")) place.textContent = text;
  };
  if (typeof DecompressionStream === "undefined") {
    say("This browser is too old to unpack the library that draws; the tables have the same numbers.");
    return;
  }
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const code = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
  } catch (error) {
    say(`The library that draws could not be unpacked (${error}); the tables have the same numbers.`);
    return;
  }
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colourway = () => [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`--c${i}`));

  /* The same kind of weight has the same colour everywhere. */
  const tinted = (trace) => {
    const ways = colourway().filter((_, i) => i !== 5), kinds = [], fixed = { all: colour("--card"), layer: colour("--grid"), file: colour("--c5"), rest: colour("--c5") };
    const of = (kind) => {
      if (fixed[kind]) return fixed[kind];
      if (!kinds.includes(kind)) kinds.push(kind);
      return ways[kinds.indexOf(kind) % ways.length];
    };
    return { ...trace, marker: { ...trace.marker, colors: trace.customdata.map(of), line: { color: colour("--card"), width: 1 } } };
  };
  const prepared = (trace) => {
    if (trace.type === "treemap") return tinted(trace);
    if (trace.type === "heatmap") {
      return { ...trace, colorscale: [[0, colour("--low")], [0.5, colour("--mid")], [1, colour("--high")]] };
    }
    if (trace.type === "bar") return { ...trace, marker: { color: colour(trace.name === "fits" ? "--c2" : "--c5") } };
    return trace;
  };
  const axis = (given) => ({
    gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line"), ...given,
  });
  const draw = () => {
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById(name);
      if (!place) continue;
      if (!place.data) place.textContent = "";
      const narrow = place.clientWidth < 520;
      const layout = {
        ...figure.layout,
        autosize: true,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        colorway: colourway(),
        font: { color: colour("--text"), family: "system-ui, sans-serif", size: narrow ? 11 : 12 },
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
      };
      if (figure.layout.xaxis) layout.xaxis = axis(figure.layout.xaxis);
      if (figure.layout.yaxis) layout.yaxis = axis(figure.layout.yaxis);
      Plotly.react(place, figure.data.map(prepared), layout, { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false });
    }
    document.documentElement.dataset.drawn = "yes";
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
