#include "draft_model.h"

#include <algorithm>

namespace pocketphi_runtime {
namespace {

Options options_of(const Options& model, const std::string& folder, const Bundle& bundle, int64_t rows) {
  Bundle draft = Bundle::read(folder, "saved");
  auto refuse = [&](const std::string& why) { throw Failure(folder + ": cannot guess for " + bundle.folder + ": " + why); };
  if (draft.vocab != bundle.vocab) {
    refuse("it has " + std::to_string(draft.vocab) + " tokens in place of " + std::to_string(bundle.vocab));
  }
  if (draft.vocabulary != bundle.vocabulary) {
    refuse(draft.vocabulary.empty() || bundle.vocabulary.empty()
               ? "one of them does not say which tokenizer it is for: compile it again"
               : "it has another tokenizer");
  }
  Options options;
  options.check = model.check;
  options.prefix = model.prefix;
  options.max_tokens = std::min(rows, draft.context);
  return options;
}

}  // namespace

DraftModel::DraftModel(const std::string& folder, const Options& options, const Bundle& model, int64_t rows)
    : model_(folder, options_of(options, folder, model, rows)), logits_(model_.vocab()) {}

int64_t DraftModel::room(const std::vector<int32_t>& seen) const {
  int64_t read = static_cast<int64_t>(seen.size());
  return std::max<int64_t>(0, model_.limit(read - 1) - read + 1);  // the last of a guess is not read
}

// How many of its first tokens it has read; never the last, which has to give the first guess.
int64_t DraftModel::same(const std::vector<int32_t>& seen) const {
  int64_t most = std::min<int64_t>(model_.length(), static_cast<int64_t>(seen.size()) - 1);
  return std::mismatch(seen.begin(), seen.begin() + most, model_.seen().begin()).first - seen.begin();
}

int64_t DraftModel::behind(const std::vector<int32_t>& seen) const { return static_cast<int64_t>(seen.size()) - same(seen); }

std::vector<int32_t> DraftModel::guess(const std::vector<int32_t>& seen, int64_t count) {
  model_.keep(same(seen));
  std::vector<int32_t> made;
  const int32_t* tokens = seen.data() + model_.length();
  for (int64_t read = behind(seen); static_cast<int64_t>(made.size()) < count; read = 1, tokens = &made.back()) {
    model_.prefill(tokens, read, logits_.data(), false);
    made.push_back(static_cast<int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin()));
  }
  return made;
}

}  // namespace pocketphi_runtime
