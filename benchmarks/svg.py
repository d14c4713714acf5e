# SPDX-License-Identifier: Apache-2.0
"""A page of text, lines and what else stands in an SVG: for the pictures beside this file."""
from html import escape


class Page:
    def __init__(self, width, font_size):
        self.width, self.font_size, self.parts = width, font_size, []

    def put(self, element):
        self.parts.append(element)

    def text(self, x, y, words, **style):
        more = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in style.items())
        self.put(f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>')

    def document(self, height):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{height}" '
                f'font-family="sans-serif" font-size="{self.font_size}">\n'
                '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(self.parts) +
                "\n</svg>\n")
