// Answers of Prometheus as Grafana's data frames, with the options that Grafana fills in when it loads a panel.

import {
  FieldConfigOptionsRegistry,
  FieldType,
  applyFieldOverrides,
  createDataFrame,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from "@grafana/data";

const STANDARD = ["displayName", "unit", "min", "max", "decimals", "noValue", "mappings", "thresholds", "color"];
const CUSTOM = [
  "axisPlacement", "axisSoftMax", "axisSoftMin", "drawStyle", "fillOpacity", "lineInterpolation", "lineStyle",
  "lineWidth", "showPoints", "spanNulls", "stacking", "thresholdsStyle",
];
const OF_LINES = { drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, axisPlacement: "auto" };
const OF_NUMBERS = ["min", "max", "thresholds", "color", "unit"];
const same = (value) => value;

const registry = new FieldConfigOptionsRegistry(() => [
  ...STANDARD.map((id) => ({
    id, path: id, name: id, process: same,
    shouldApply: (field) => field.type === FieldType.number || !OF_NUMBERS.includes(id),
  })),
  ...CUSTOM.map((path) => ({
    id: `custom.${path}`, path, name: path, isCustom: true, process: same,
    shouldApply: (field) => field.type === FieldType.number,
  })),
]);

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((each) => ({
    id: each.id, name: each.name, transformation: each, editor: null,
  })),
);

function named(legend, labels) {
  return legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? name);
}

function series(target, answer) {
  return answer.result.map(({ metric, values }) => {
    const name = target.legendFormat ? { displayNameFromDS: named(target.legendFormat, metric) } : {};
    return createDataFrame({
      refId: target.refId,
      fields: [
        { name: "Time", type: FieldType.time, config: { interval: answer.step_ms }, values: values.map(([at]) => at * 1000) },
        { name: "Value", type: FieldType.number, config: name, labels: metric, values: values.map(([, value]) => +value) },
      ],
    });
  });
}

function rows(target, answer, alone) {
  const labels = [...new Set(answer.result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const column = (name, type, values) => ({ name, type, values, config: {} });
  return createDataFrame({
    refId: target.refId,
    fields: [
      column("Time", FieldType.time, answer.result.map(({ values }) => values[0][0] * 1000)),
      ...labels.map((label) => column(label, FieldType.string, answer.result.map(({ metric }) => metric[label] ?? ""))),
      column(alone ? "Value" : `Value #${target.refId}`, FieldType.number, answer.result.map(({ values }) => +values[0][1])),
    ],
  });
}

function configOf(panel) {
  const { defaults, overrides } = panel.fieldConfig;
  const lines = panel.type === "timeseries";
  const steps = defaults.thresholds?.steps ?? [{ color: "green", value: null }, { color: "red", value: 80 }];
  return {
    overrides,
    defaults: {
      color: { mode: lines ? "palette-classic" : "thresholds" },
      ...defaults,
      custom: lines ? { ...OF_LINES, ...defaults.custom } : {},
      // A file cannot hold minus infinity; null stands for it.
      thresholds: { mode: "absolute", steps: steps.map((step) => ({ ...step, value: step.value ?? -Infinity })) },
    },
  };
}

// The frames of a panel; `answers` are those of its targets, each {step_ms, result: [{metric, values: [[s, text]]}]}.
export function framesOf(panel, answers, theme) {
  const asTable = (target) => target.format === "table";
  let frames = panel.targets.flatMap((target, place) =>
    asTable(target) ? [rows(target, answers[place], panel.targets.length === 1)] : series(target, answers[place]),
  );
  transformDataFrame(panel.transformations ?? [], frames).subscribe((changed) => { frames = changed; });
  const fieldConfig = configOf(panel);
  const data = applyFieldOverrides({
    data: frames, fieldConfig, fieldConfigRegistry: registry, theme, timeZone: "utc", replaceVariables: same,
  });
  return { data, fieldConfig };
}
