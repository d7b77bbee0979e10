// A JSON array of texts in; the tokens of each out: text_filter TOKENIZER < texts > ids
#include <iostream>
#include <iterator>

#include "data.hpp"
#include "tokenizer.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto tokenizer = sana_rt::runtime::Tokenizer::parse(content(argv[1]));
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  auto all = nlohmann::json::array();
  for (const auto& text : nlohmann::json::parse(input)) {
    auto ids = nlohmann::json::array();
    for (const auto& token : tokenizer.encode(text.get<std::string>())) ids.push_back(token.id);
    all.push_back(ids);
  }
  std::cout << all << '\n';
}
