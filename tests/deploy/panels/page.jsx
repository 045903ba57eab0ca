// Draws a dashboard of deploy/grafana with Grafana's own components and tells what was drawn. The test calls
// `draw(dashboard, answers, range, theme)` and then `report()`.

import {
  ThemeContext,
  createTheme,
  dateTime,
  formattedValueToString,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
} from "@grafana/data";
import { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries, VizRepeater } from "@grafana/ui";
import { createRoot } from "react-dom/client";

import { framesOf } from "./frames.js";

const COLUMN = 64, ROW = 30, GAP = 8; // of Grafana's grid, in pixels; a dashboard is 24 columns wide
const LEGEND = { showLegend: true, displayMode: "list", placement: "bottom", calcs: [] };
const notes = {};

function place({ x, y, w, h }) {
  return { left: x * COLUMN + GAP, top: y * (ROW + GAP) + GAP, width: w * COLUMN - GAP, height: h * (ROW + GAP) - GAP };
}

function Lines({ panel, frames, range, width, height }) {
  const note = (config) => {
    config.addHook("draw", (u) => { notes[panel.id] = { u, config, frames }; });
    return null;
  };
  return (
    <TimeSeries frames={frames} timeRange={range} timeZone="utc" width={width} height={height}
      legend={panel.options?.legend ?? LEGEND} options={{}}>{note}</TimeSeries>
  );
}

function Numbers({ frames, fieldConfig, theme, width, height }) {
  const options = { data: frames, fieldConfig, theme, timeZone: "utc", replaceVariables: (text) => text };
  const values = getFieldDisplayValues({ ...options, reduceOptions: { calcs: ["lastNotNull"], values: false } });
  const value = ({ value: { display }, count, ...size }) => (
    <BigValue value={display} count={count} theme={theme} width={size.width} height={size.height}
      alignmentFactors={size.alignmentFactors} colorMode="value" graphMode="area" textMode="auto" />
  );
  return (
    <VizRepeater source={frames} getValues={() => values} renderValue={value} width={width} height={height}
      getAlignmentFactors={getDisplayValueAlignmentFactors} orientation="auto" itemSpacing={3} />
  );
}

// Grafana publishes no state timeline and no heat map: their last values, with colours and words, stand in a table.
function Lasts({ frames }) {
  return <ul style={{ paddingLeft: "1em" }}>{frames.map((frame, at) => {
    const field = frame.fields[1], shown = field.display(field.values.at(-1));
    return <li key={at}>{getFieldDisplayName(field, frame, frames)}: <b style={{ color: shown.color }}>{formattedValueToString(shown)}</b></li>;
  })}</ul>;
}

function Panel({ panel, answers, range, theme }) {
  const { data: frames, fieldConfig } = framesOf(panel, answers, theme);
  const { width, height, ...corner } = place(panel.gridPos);
  const inside = (innerWidth, innerHeight) => {
    const common = { panel, frames, fieldConfig, range, theme, width: innerWidth, height: innerHeight };
    if (!frames.some((frame) => frame.length)) return <p>No data</p>;
    if (panel.type === "timeseries") return <Lines {...common} />;
    if (panel.type === "stat") return <Numbers {...common} />;
    if (panel.type === "table") return <Table data={frames[0]} width={innerWidth} height={innerHeight} fieldConfig={fieldConfig} />;
    return <Lasts {...common} />;
  };
  return (
    <div id={`panel-${panel.id}`} style={{ position: "absolute", ...corner }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>{inside}</PanelChrome>
    </div>
  );
}

function Board({ board, answers, range, theme }) {
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      {board.panels.map((panel) => panel.type === "row"
        ? <h3 key={panel.id} style={{ position: "absolute", ...place(panel.gridPos) }}>{panel.title}</h3>
        : <Panel key={panel.id} {...{ panel, range, theme }} answers={answers[panel.id]} />)}
    </ThemeContext.Provider>
  );
}

let root, theme;

window.draw = (board, answers, [from, to], mode) => {
  theme = createTheme({ colors: { mode } });
  const moments = { from: dateTime(from), to: dateTime(to) };
  for (const id in notes) delete notes[id];
  root?.unmount();
  root = createRoot(document.getElementById("board"));
  const bottom = Math.max(...board.panels.map(({ gridPos: { y, h } }) => y + h));
  Object.assign(document.body.style, { background: theme.colors.background.canvas, height: `${bottom * (ROW + GAP) + 2 * GAP}px` });
  root.render(<Board {...{ board, answers, theme }} range={{ ...moments, raw: moments }} />);
};

function alike(pixels, at, colour) {
  return pixels[at + 3] > 100 && colour.every((part, channel) => Math.abs(part - pixels[at + channel]) < 40);
}

// The share of a line's points at which the canvas has the colour of a line: it is drawn where its values are.
function inked(u, place, colours) {
  const { width, height } = u.ctx.canvas;
  const pixels = u.ctx.getImageData(0, 0, width, height).data;
  const coloured = (x, y) => colours.some((colour) => alike(pixels, 4 * (y * width + x), colour));
  const near = (at, value) => {
    const x = Math.round(u.valToPos(at, "x", true)), y = Math.round(u.valToPos(value, u.series[place].scale, true));
    for (let dx = -2; dx <= 2; dx++) for (let dy = -2; dy <= 2; dy++) if (coloured(x + dx, y + dy)) return true;
    return false;
  };
  const points = u.data[place].flatMap((value, at) => (Number.isFinite(value) ? [near(u.data[0][at], value)] : []));
  return points.filter(Boolean).length / points.length;
}

// The share of the width at which the canvas has the colour of a threshold at its height.
function dashes(u, scale, { value, color }) {
  const { left, width } = u.bbox, y = Math.round(u.valToPos(value, scale, true));
  const pixels = u.ctx.getImageData(left, y, width, 1).data, wanted = rgb(theme.visualization.getColorByName(color));
  let found = 0;
  for (let at = 0; at < pixels.length; at += 4) found += alike(pixels, at, wanted);
  return found / width;
}

window.colour = (name) => rgb(theme.visualization.getColorByName(name));

function rgb(colour) {
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function linesOf({ u, config, frames }) {
  const own = config.getSeries().map((each) => each.props);
  const colours = own.map((each) => rgb(each.lineColor));
  return {
    axes: u.axes.slice(1).map((axis) => ({ scale: axis.scale, side: axis.side, ticks: axis._values ?? [] })),
    steps: own[0].thresholds.steps.slice(1).map((step) => ({ ...step, inked: dashes(u, own[0].scaleKey, step) })),
    scales: Object.fromEntries(Object.entries(u.scales).map(([key, { min, max }]) => [key, [min, max]])),
    series: own.map(({ scaleKey, dataFrameFieldIndex: { frameIndex, fieldIndex } }, at) => {
      const numbers = u.data[at + 1].filter(Number.isFinite);
      return {
        name: getFieldDisplayName(frames[frameIndex].fields[fieldIndex], frames[frameIndex], frames),
        ref: frames[frameIndex].refId, scale: scaleKey, points: numbers.length, high: Math.max(...numbers),
        inked: inked(u, at + 1, colours),
      };
    }),
  };
}

// Whether the page looks as it did at the last call: legends are measured before lines get their place.
let before;
window.settled = () => {
  const drawn = [...document.querySelectorAll("canvas")].map(({ width, height }) => [width, height]);
  const now = JSON.stringify([drawn, document.body.innerHTML.length, Object.keys(notes).length]);
  const same = now === before;
  before = now;
  return same && drawn.length > 0 && drawn.length === Object.keys(notes).length;
};

// The text of a panel, the texts and the legends that do not fit into it, all texts with their colours, and its lines.
window.report = (id) => {
  const panel = document.getElementById(`panel-${id}`);
  const ofText = (node) => node.nodeType === Node.TEXT_NODE;
  const leaves = [...panel.querySelectorAll("*")].filter((each) => [...each.childNodes].some(ofText));
  const isCut = (each) => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline";
  const edge = panel.getBoundingClientRect().right;
  const isOutside = (each) => each.getBoundingClientRect().right > edge;
  return {
    text: panel.innerText,
    cut: [...leaves.filter(isCut), ...[...panel.querySelectorAll("table")].filter(isOutside)].map((each) => each.innerText),
    coloured: leaves.map((each) => ({ text: each.innerText, rgb: rgb(getComputedStyle(each).color) })),
    lines: notes[id] ? linesOf(notes[id]) : null,
  };
};
