"""Style sheet of the page of a diagnosis, beside that of all pages."""

CSS = """
.fill { fill: currentColor; }
.finding { border: 1px solid var(--rule); border-left: 5px solid var(--s4); border-radius: 0 10px 10px 0;
  background: var(--card); padding: 14px 18px; margin: 14px 0; }
.finding.alarm { border-left-color: var(--bad); }
.finding h3 { font-size: 17px; margin: 2px 0 6px; } .finding p { margin: 4px 0; }
.verdict.alarm { background: var(--bad-back); color: var(--bad); }
.verdict.notice { background: var(--flat-back); color: var(--ink); }
.verdict.ok { background: var(--good-back); color: var(--good); }
.figure { white-space: nowrap; }
section > p.lead { margin: 4px 0 14px; }
"""
