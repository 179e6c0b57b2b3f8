// JSON in the strict sense: what jobs are read from and events are written in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace json {

// One value of a document. A number that is written as an integer and fits into 64 bits is kept exactly.
struct Value {
    enum class Kind { null, boolean, integer, real, text, list, object };

    Kind kind = Kind::null;
    bool boolean = false;
    int64_t integer = 0;
    double real = 0;  // of an integer too
    std::string text;
    std::vector<Value> items;
    std::vector<std::pair<std::string, Value>> members;

    bool is(Kind other) const { return kind == other; }
    bool is_number() const { return kind == Kind::integer || kind == Kind::real; }
    bool is_set() const;                           // what counts as given: not null, false, 0 or empty
    const Value& operator[](std::string_view key) const;  // null where there is none; of two, the last
};

// Throws std::runtime_error with one line: what was expected where.
Value parsed(std::string_view document, std::size_t most_deep = 64);

// A value as messages quote it, in the words the Python agent uses ('text', None, True), cut to about 200 characters.
std::string shown(const Value& value);
std::string shown_text(const std::string& text);

// A text as a JSON string; bytes that are no UTF-8 become U+FFFD.
std::string in_quotes(std::string_view text);

// Builds one object, its members in the order they are added.
class Object {
public:
    Object() = default;
    explicit Object(std::string_view event) { add("event", std::string(event)); }

    Object& raw(std::string_view key, std::string_view json);  // `json` is a value already
    Object& add(std::string_view key, const std::string& text) { return raw(key, in_quotes(text)); }
    Object& add(std::string_view key, const char* text) { return raw(key, in_quotes(text)); }
    Object& add(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
    Object& add(std::string_view key, int64_t value) { return raw(key, std::to_string(value)); }
    Object& add(std::string_view key, int value) { return raw(key, std::to_string(value)); }
    Object& add(std::string_view key, double value);  // null where it is no number
    Object& add(std::string_view key, const std::vector<std::string>& texts);
    Object& add(const Object& more);  // its members
    std::string str() const { return "{" + inside_ + "}"; }

private:
    std::string inside_;
};

std::string number(double value);
std::string list(const std::vector<std::string>& values);  // of values that are JSON already

// The bytes in base64.
std::string base64(const void* bytes, std::size_t size);

}  // namespace json
