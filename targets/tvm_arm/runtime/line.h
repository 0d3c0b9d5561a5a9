// What messages are made of: one line, valid UTF-8 (Java aborts on other text), cut between characters.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

namespace pocketphi_runtime {

constexpr size_t kLongestLine = 1000;

// Bytes of the UTF-8 character that begins at `at`, of three at most beyond ASCII as in modified UTF-8; 0 for what is none.
inline size_t character(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  size_t size = lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  return size;
}

// White space and control characters become single spaces, other bytes that are no text question marks.
inline std::string one_line(std::string_view text) {
  std::string line;
  for (size_t at = 0, size; at < text.size() && line.size() < kLongestLine; at += std::max<size_t>(size, 1)) {
    size = character(text, at);
    auto c = static_cast<unsigned char>(text[at]);
    if (size != 1) line += size ? text.substr(at, size) : "?";
    else if (c > ' ' && c != 0x7f) line += text[at];
    else if (!line.empty() && line.back() != ' ') line += ' ';
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.empty() ? "unknown error" : line;
}

// As much of a line as fits into a buffer, with the zero at its end.
inline void copy_text(std::string_view line, char* buffer, size_t size) {
  if (!buffer || !size) return;
  size_t count = 0;
  for (size_t next; count < line.size() && count + (next = std::max<size_t>(character(line, count), 1)) < size;) count += next;
  std::memcpy(buffer, line.data(), count);
  buffer[count] = 0;
}

}  // namespace pocketphi_runtime
