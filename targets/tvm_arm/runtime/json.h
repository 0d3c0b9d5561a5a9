// JSON as model.json and the options are written in. Numbers with a fraction are kept as they were written: nothing needs them.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pocketphi_runtime {

struct Json {
  enum class Kind { null, flag, whole, fraction, text, list, object };
  Kind kind = Kind::null;
  bool flag = false;
  int64_t whole = 0;
  std::string text;                // of a text, or of a fraction's digits
  std::vector<std::string> keys;   // of an object's items
  std::vector<Json> items;

  // Fails with a line that starts with `name` for what is not JSON, or is nested deeper than 32.
  static Json parse(const std::string& text, const std::string& name);

  // The last with this key, or null.
  const Json* find(const std::string& key) const;

  // How a value that holds no others is written. Equal ones are written the same.
  std::string written() const;
};

}  // namespace pocketphi_runtime
