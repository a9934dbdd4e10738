// The page of one dashboard: ?uid=…&from=…&to=…&scrape=…&domain=…&instance=…[&open], times in seconds since 1970.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import { createTheme, dateTime, standardTransformers, standardTransformersRegistry } from '@grafana/data';
import { GlobalStyles, PortalContainer, ThemeContext } from '@grafana/ui';
import { createRoot } from 'react-dom/client';
import { dressed } from './fields.js';
import { marks } from './marks.js';
import { Inside } from './panels.jsx';
import { ask } from './prometheus.js';
import './page.css';

const CELL = 30;
const GAP = 8;
const COLUMNS = 24;
const HEADER = 32;
const PADDING = 8;

const given = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: 'dark' } });
const scene = { from: Number(given.get('from')), to: Number(given.get('to')), scrapeS: Number(given.get('scrape')),
  domain: given.get('domain') || '.+', instance: given.get('instance') || '.+', marks: () => undefined };
scene.stepS = Math.max(scene.scrapeS, Math.ceil((scene.to - scene.from) / 600));
scene.timeRange = { from: dateTime(scene.from * 1000), to: dateTime(scene.to * 1000), raw: { from: '', to: '' } };

// Some are exported under two names.
const transformers = new Map(Object.values(standardTransformers).map((one) => [one.id, one]));
standardTransformersRegistry.setInit(() => [...transformers.values()].map(
  (one) => ({ id: one.id, name: one.name, transformation: () => Promise.resolve(one), editor: () => null })));

async function panels(dashboard) {
  const open = given.has('open');
  const rows = [];
  let shift = 0;
  for (const panel of dashboard.panels) {
    rows.push({ ...panel, gridPos: { ...panel.gridPos, y: panel.gridPos.y + shift } });
    if (panel.type === 'row' && panel.collapsed && open) {
      const bottom = Math.max(...panel.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
      panel.panels.forEach((one) => rows.push({ ...one, gridPos: { ...one.gridPos, y: one.gridPos.y + shift } }));
      shift += bottom - panel.gridPos.y - 1;
    }
  }
  return Promise.all(rows.map(async (panel) => {
    if (panel.type === 'row') {
      return { panel };
    }
    try {
      // What Infinity asks is in collapsed rows, and there is no archive behind the page.
      const asked = panel.targets.filter(({ expr }) => expr);
      const answers = await Promise.all(asked.map(
        (target) => ask(target, scene, asked.length === 1)));
      return { panel, frames: await dressed(panel, answers.flat(), theme) };
    } catch (error) {
      console.error(`${panel.title}: ${error}`);
      return { panel, error };
    }
  }));
}

function Box({ panel, frames, error, column }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { left: x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  if (panel.type === 'row') {
    return <div className="row" style={place}>{panel.collapsed && !given.has('open') ? '›' : '⌄'} {panel.title}</div>;
  }
  const width = place.width - 2 * PADDING;
  const height = place.height - HEADER - PADDING;
  return (
    <section style={place} data-title={panel.title}>
      <header>{panel.title}</header>
      <div style={{ padding: `0 ${PADDING}px` }}>
        {error ? <div className="empty">{String(error)}</div>
          : <Inside panel={panel} frames={frames} width={width} height={height} scene={scene} theme={theme} />}
      </div>
    </section>
  );
}

function Page({ dashboard, content }) {
  const column = (innerWidth - 2 * 16 + GAP) / COLUMNS;
  const rows = Math.max(...content.map(({ panel }) => panel.gridPos.y + panel.gridPos.h));
  const chosen = dashboard.templating.list.filter(({ type }) => type === 'query').map(({ name, label }) => (
    <span key={name}><b>{label}</b>{scene[name] && scene[name] !== '.+' ? scene[name] : 'All'}</span>));
  return (
    <main>
      <h1>{dashboard.title}<small>{new Date(scene.to * 1000).toISOString().slice(0, 10)}</small></h1>
      <nav>{chosen}</nav>
      <div style={{ position: 'relative', height: rows * (CELL + GAP) }}>
        {content.map((one) => <Box key={one.panel.id} {...one} column={column} />)}
      </div>
    </main>
  );
}

// Axes are as wide as their labels, so the letters must be there first.
await Promise.all([document.fonts.load('12px Inter'), document.fonts.load('500 12px Inter')]);
const dashboard = await (await fetch(`/${given.get('uid')}.json`)).json();
scene.marks = await marks(dashboard, scene, theme);
const content = await panels(dashboard);
createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Page dashboard={dashboard} content={content} />
    <PortalContainer />
  </ThemeContext.Provider>);
setTimeout(() => { document.title = 'drawn'; }, 1500);
