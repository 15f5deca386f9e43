"""Style sheet of a page: light and dark, wide and narrow, screen and paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b2430; --soft: #5b6675; --rule: #dfe3e8; --grid: #e3e7ec;
  --good: #00694c; --good-back: #dcf3ea; --bad: #a03c00; --bad-back: #fde8dc; --flat-back: #e9ecf0; --link: #005c93;
  --s0: #0072b2; --s1: #d55e00; --s2: #008f68; --s3: #b8578f; --s4: #a67400; --s5: #545c66; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181d; --card: #1c2229; --ink: #e7ebf0; --soft: #9aa6b4; --rule: #2e3640; --grid: #2b333d;
  --good: #6fe0b8; --good-back: #123a2d; --bad: #ffb38a; --bad-back: #46230f; --flat-back: #2a313a; --link: #7cc4f2;
  --s0: #5cb8f0; --s1: #ff9a52; --s2: #38cfa0; --s3: #ea9fca; --s4: #f0c04a; --s5: #c3cad3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 20px; letter-spacing: -.01em; }
h2 { font-size: 21px; line-height: 1.25; margin: 52px 0 6px; letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 0 0 6px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 74ch; }
.kicker { color: var(--soft); font-size: 13px; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
.soft { color: var(--soft); }
.small { font-size: 14px; }
.facts { display: flex; flex-wrap: wrap; gap: 1px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; margin: 0; }
.facts div { flex: 1 1 180px; background: var(--card); padding: 10px 14px; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-weight: 550; overflow-wrap: anywhere; }
.result { border-left: 4px solid var(--s0); padding: 2px 0 2px 14px; margin: 24px 0 0; font-size: 17px; }
.result p { margin: 4px 0; }
.warnings { background: var(--bad-back); border-left: 4px solid var(--bad); border-radius: 0 10px 10px 0;
  padding: 12px 18px; margin: 24px 0 0; }
.warnings h2 { margin: 0 0 4px; font-size: 17px; color: var(--bad); }
.warnings ul { margin: 0; padding-left: 20px; } .warnings li { margin: 4px 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 10px 18px 10px 0; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--rule); white-space: nowrap; }
tbody th { font-weight: 600; }
.hint { display: block; color: var(--soft); font-size: 13px; font-weight: 400; line-height: 1.35; }
.value { font-size: 17px; font-weight: 600; }
.range { color: var(--soft); font-size: 14px; white-space: nowrap; }
.many .range { display: block; font-size: 12px; } .many .change { font-size: 13px; }
.many th, .many td { padding-right: 8px; }
.many thead th { white-space: normal; } .many .verdict { padding: 0 7px; font-size: 12px; white-space: normal; }
.change { display: block; font-size: 14px; margin-top: 3px; }
.verdict { display: inline-block; border-radius: 20px; padding: 0 9px; font-size: 13px; font-weight: 600;
  white-space: nowrap; background: var(--flat-back); color: var(--soft); }
.verdict.better { background: var(--good-back); color: var(--good); }
.verdict.worse { background: var(--bad-back); color: var(--bad); }
.verdict.differs { background: var(--flat-back); color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px;
  margin: 16px 0; }
.cards.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px; }
figcaption { color: var(--soft); font-size: 13px; line-height: 1.4; margin-top: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 10px 0 0; list-style: none;
  font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 7px; }
svg.chart { display: block; width: 100%; height: auto; margin: 0 auto; }
svg.swatch { flex: none; vertical-align: middle; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text.name { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--grid); stroke-width: 1; }
.reference { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 4; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.line.thin { stroke-width: 1; opacity: .5; }
.whisker { stroke: currentColor; stroke-width: 2; }
.dot { fill: currentColor; stroke: var(--card); stroke-width: 1; }
.ring { fill: none; stroke: currentColor; stroke-width: 1.5; }
.touch { fill: transparent; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.bar { display: block; } .bar .track { fill: var(--grid); }
.bar .up { fill: var(--s0); } .bar .down { fill: var(--s1); }
.events { margin: 16px 0 0; }
.events td { padding: 8px 16px 8px 0; }
.events td:last-child { width: 46%; padding-right: 0; }
.weight { display: grid; grid-template-columns: 1fr 5em; gap: 10px; align-items: center; }
.weight b { text-align: right; font-weight: 600; }
details { border: 1px solid var(--rule); border-radius: 10px; margin: 10px 0; background: var(--card); }
summary { cursor: pointer; padding: 10px 14px; font-weight: 550; }
details > div, details > pre { padding: 0 14px 14px; margin: 0; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.5; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--flat-back); border-radius: 5px; padding: 1px 6px; font-size: .88em; overflow-wrap: anywhere; }
ol.next { padding-left: 22px; } ol.next li { margin: 8px 0; }
footer { margin-top: 56px; border-top: 1px solid var(--rule); padding-top: 14px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 24px 16px 48px; } h1 { font-size: 25px; } h2 { margin-top: 40px; }
  .facts div { flex-basis: 145px; }
  tbody, tr, td, tbody th { display: block; } td, tbody th { border: 0; padding: 4px 0; } thead { display: none; }
  tr { border-bottom: 1px solid var(--rule); padding: 8px 0; }
  td[data-column]::before { content: attr(data-column); display: block; color: var(--soft); font-size: 13px; }
  .events td { padding: 0; } .events td:last-child { width: auto; }
}
@media print { main { max-width: none; } figure, table, details { break-inside: avoid; } }
"""
