// node check-schema.mjs [FILE...]
// Checks the committed dashboards against JSON Schemas made from Grafana's own TypeScript types: the dashboard as a
// whole, and each panel's options and custom field configuration by its type. Every key must be known, and of the
// right kind; fails with a line for each mistake. It first makes sure that it finds mistakes.
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import Ajv from 'ajv';
import { createGenerator } from 'ts-json-schema-generator';

const here = import.meta.dirname;
const raw = join(here, 'node_modules/@grafana/schema/dist/types/raw');
const folders = { timeseries: 'timeseries', stat: 'stat', table: 'table', bargauge: 'bargauge', 'state-timeline': 'statetimeline' };
const ajv = new Ajv({ strict: false, allErrors: true, allowUnionTypes: true });

function validator(path, type, { partial = false } = {}) {
  const file = join(raw, path, 'x/types.gen.d.ts');
  if (!new RegExp(`export (interface|type) ${type}\\b`).test(readFileSync(file, 'utf8'))) {
    return () => true; // this kind of panel has no field configuration of its own
  }
  const schema = createGenerator({ path: file, type, skipTypeCheck: true, additionalProperties: false }).createSchema(type);
  return ajv.compile(partial ? withoutRequired(schema) : schema);
}

// A dashboard names what differs from the defaults; the types say what Grafana has after it filled them in.
function withoutRequired(value) {
  if (Array.isArray(value)) {
    return value.map(withoutRequired);
  }
  if (value === null || typeof value !== 'object') {
    return value;
  }
  return Object.fromEntries(Object.entries(value).filter(([key, one]) => !(key === 'required' && Array.isArray(one)))
    .map(([key, one]) => [key, withoutRequired(one)]));
}

// What data sources and variable editors keep beside the common keys: Prometheus's and Infinity's annotations have
// their queries there, and a query variable the text that its editor shows.
const OWN = {
  annotation: ['expr', 'step', 'titleFormat', 'textFormat', 'tagKeys', 'useValueForTime', 'target'],
  variable: ['definition'],
};

function common(dashboard) {
  const copy = structuredClone(dashboard);
  copy.annotations?.list?.forEach((one) => OWN.annotation.forEach((key) => delete one[key]));
  copy.templating.list.filter(({ type }) => type === 'query').forEach((one) => OWN.variable.forEach((key) => delete one[key]));
  return copy;
}

const whole = validator('dashboard', 'Dashboard', { partial: true });
const kinds = Object.fromEntries(Object.entries(folders).map(([type, folder]) => [type, {
  options: validator(`composable/${folder}/panelcfg`, 'Options', { partial: true }),
  custom: validator(`composable/${folder}/panelcfg`, 'FieldConfig', { partial: true }),
}]));

function* mistakes(name, dashboard) {
  yield* told(name, whole, common(dashboard));
  const panels = dashboard.panels.flatMap((panel) => (panel.type === 'row' ? panel.panels : [panel]));
  for (const panel of panels) {
    const kind = kinds[panel.type];
    if (!kind) {
      yield `${name}: ${panel.title}: the type ${panel.type} is not known here`;
      continue;
    }
    const where = `${name}: ${panel.title}`;
    yield* told(`${where}: options`, kind.options, panel.options ?? {});
    yield* told(`${where}: custom`, kind.custom, panel.fieldConfig.defaults.custom ?? {});
    for (const { matcher, properties } of panel.fieldConfig.overrides) {
      const custom = properties.filter(({ id }) => id.startsWith('custom.')).map(({ id, value }) => [id.slice('custom.'.length), value]);
      yield* told(`${where}: override of ${matcher.options}`, kind.custom, Object.fromEntries(custom));
    }
  }
}

function* told(where, valid, value) {
  if (!valid(value)) {
    for (const { instancePath, message, params } of valid.errors) {
      yield `${where}${instancePath}: ${message} ${JSON.stringify(params)}`;
    }
  }
}

function mustFind(name, dashboard) {
  const spoil = (change) => { const copy = structuredClone(dashboard); change(copy); return copy; };
  const panel = (copy) => copy.panels.find(({ type }) => type === 'timeseries');
  const spoilt = [
    spoil((copy) => { copy.titel = 'x'; }),
    spoil((copy) => { copy.refresh = 5; }),
    spoil((copy) => { panel(copy).gridPos.w = 'wide'; }),
    spoil((copy) => { panel(copy).fieldConfig.defaults.units = 's'; }),
    spoil((copy) => { panel(copy).options.legend.displayMode = 'tabel'; }),
    spoil((copy) => { panel(copy).fieldConfig.defaults.custom.lineWidht = 1; }),
  ];
  spoilt.forEach((copy, at) => {
    if ([...mistakes(name, copy)].length === 0) {
      throw new Error(`the check is blind: it found no mistake in spoilt dashboard ${at + 1}`);
    }
  });
}

const given = process.argv.slice(2);
const folder = join(here, '..', 'dashboards');
const files = given.length ? given : readdirSync(folder).map((file) => join(folder, file));
const read = files.map((file) => [basename(file, '.json'), JSON.parse(readFileSync(file, 'utf8'))]);
mustFind(...read.find(([, dashboard]) => dashboard.panels.some(({ type }) => type === 'timeseries')));
const found = read.flatMap(([name, dashboard]) => [...mistakes(name, dashboard)]);
found.forEach((line) => console.error(line));
console.log(`${read.length} dashboards against @grafana/schema: ${found.length || 'no'} mistakes`);
process.exit(found.length ? 1 : 0);
