#include "json.h"

#include <cstring>

#include "failure.h"

namespace pocketphi_runtime {
namespace {

constexpr int kDeepest = 32;

class Parser {
 public:
  Parser(const std::string& text, const std::string& name) : at_(text.data()), end_(at_ + text.size()), name_(name) {}

  Json whole_text() {
    Json value = this->value(0);
    if (next() != 0 || at_ != end_) refuse("more than one value");
    return value;
  }

 private:
  using Kind = Json::Kind;

  [[noreturn]] void refuse(const std::string& why) const { throw Failure(name_ + ": not valid JSON: " + why); }

  // The next character that is no white space; 0 at the end.
  char next() {
    while (at_ != end_ && std::memchr(" \t\r\n", *at_, 4)) ++at_;
    return at_ == end_ ? 0 : *at_;
  }

  bool take(char c) {
    if (next() != c || at_ == end_) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) refuse(std::string("expected '") + c + "'");
  }

  bool take_word(const char* word) {
    size_t size = std::strlen(word);
    if (static_cast<size_t>(end_ - at_) < size || std::memcmp(at_, word, size) != 0) return false;
    at_ += size;
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) refuse("nested deeper than " + std::to_string(kDeepest));
    Json made;
    char first = next();
    if (first == '{' || first == '[') return first == '{' ? object(depth) : list(depth);
    if (first == '"') {
      made.kind = Kind::text;
      made.text = text();
    } else if (take_word("true") || take_word("false")) {
      made.kind = Kind::flag;
      made.flag = first == 't';
    } else if (!take_word("null")) {
      return number();
    }
    return made;
  }

  Json list(int depth) {
    Json made;
    made.kind = Kind::list;
    expect('[');
    if (take(']')) return made;
    do made.items.push_back(value(depth + 1));
    while (take(','));
    expect(']');
    return made;
  }

  Json object(int depth) {
    Json made;
    made.kind = Kind::object;
    expect('{');
    if (take('}')) return made;
    do {
      if (next() != '"') refuse("expected a name in quotes");
      made.keys.push_back(text());
      expect(':');
      made.items.push_back(value(depth + 1));
    } while (take(','));
    expect('}');
    return made;
  }

  bool digits(std::string& into) {
    size_t before = into.size();
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') into += *at_++;
    return into.size() > before;
  }

  Json number() {
    Json made;
    if (at_ != end_ && *at_ == '-') made.text += *at_++;
    size_t first = made.text.size();
    if (!digits(made.text) || (made.text[first] == '0' && made.text.size() > first + 1)) refuse("expected a value");
    made.kind = Kind::whole;
    if (at_ != end_ && *at_ == '.') {
      made.kind = Kind::fraction;
      made.text += *at_++;
      if (!digits(made.text)) refuse("a number without digits after its point");
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      made.kind = Kind::fraction;
      made.text += *at_++;
      if (at_ != end_ && (*at_ == '+' || *at_ == '-')) made.text += *at_++;
      if (!digits(made.text)) refuse("a number without digits in its exponent");
    }
    if (made.kind == Kind::whole) made.whole = whole(made.text);
    return made;
  }

  int64_t whole(const std::string& digits) const {
    int64_t value = 0;
    bool negative = digits[0] == '-';
    for (size_t i = negative; i < digits.size(); ++i) {
      int64_t digit = negative ? '0' - digits[i] : digits[i] - '0';
      if (__builtin_mul_overflow(value, int64_t{10}, &value) || __builtin_add_overflow(value, digit, &value)) {
        refuse("a number of more than 64 bits");
      }
    }
    return value;
  }

  std::string text() {
    std::string made;
    expect('"');
    for (;;) {
      if (at_ == end_) refuse("a text that does not end");
      char c = *at_++;
      if (c == '"') return made;
      if (static_cast<unsigned char>(c) < ' ') refuse("a control character in a text");
      if (c == '\\') escaped(made);
      else made += c;
    }
  }

  void escaped(std::string& into) {
    constexpr char kNames[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
    char name = at_ == end_ ? 0 : *at_++;
    if (name == 'u') return append(into, character());
    const char* found = name ? std::strchr(kNames, name) : nullptr;
    if (!found) refuse("an unknown escape in a text");
    into += kMeanings[found - kNames];
  }

  uint32_t unit() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      constexpr char kDigits[] = "0123456789abcdef";
      char c = at_ == end_ ? 0 : *at_++;
      const char* found = c ? std::strchr(kDigits, c >= 'A' && c <= 'F' ? c + 'a' - 'A' : c) : nullptr;
      if (!found) refuse("an unknown escape in a text");
      value = value * 16 + static_cast<uint32_t>(found - kDigits);
    }
    return value;
  }

  // One of UTF-16, which writes characters beyond 16 bits as two.
  uint32_t character() {
    uint32_t high = unit();
    if (high < 0xd800 || high > 0xdbff || !take_word("\\u")) return high;
    uint32_t low = unit();
    if (low < 0xdc00 || low > 0xdfff) refuse("half of a character in a text");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  static void append(std::string& into, uint32_t c) {
    if (c < 0x80) {
      into += static_cast<char>(c);
      return;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    into += static_cast<char>((0xff00 >> (more + 1) & 0xff) | c >> 6 * more);
    while (more-- > 0) into += static_cast<char>(0x80 | (c >> 6 * more & 0x3f));
  }

  const char* at_;
  const char* end_;
  std::string name_;
};

}  // namespace

Json Json::parse(const std::string& text, const std::string& name) { return Parser(text, name).whole_text(); }

const Json* Json::find(const std::string& key) const {
  for (size_t i = keys.size(); i-- > 0;) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

std::string Json::written() const {
  switch (kind) {
    case Kind::null: return "null";
    case Kind::flag: return flag ? "true" : "false";
    case Kind::whole: return std::to_string(whole);
    case Kind::text: return '"' + text + '"';
    default: return text;
  }
}

}  // namespace pocketphi_runtime
