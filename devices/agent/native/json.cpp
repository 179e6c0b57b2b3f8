#include "json.hpp"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace json {
namespace {

// Length of the UTF-8 sequence that begins at `at`, 0 if none does (RFC 3629: no surrogates, no longer form than needed).
std::size_t utf8_length(std::string_view text, std::size_t at) {
    auto byte = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned first = byte(at);
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xc2 && first < 0xe0 ? 2 : (first & 0xf0) == 0xe0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
    for (std::size_t k = 1; k < length; ++k)
        if ((byte(at + k) & 0xc0) != 0x80) return 0;
    const unsigned second = byte(at + 1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0)) return 0;
    if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second >= 0x90)) return 0;
    return length;
}

void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
    } else if (code < 0x800) {
        out += static_cast<char>(0xc0 | (code >> 6));
        out += static_cast<char>(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        out += static_cast<char>(0xe0 | (code >> 12));
        out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
        out += static_cast<char>(0x80 | (code & 0x3f));
    } else {
        out += static_cast<char>(0xf0 | (code >> 18));
        out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
        out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
        out += static_cast<char>(0x80 | (code & 0x3f));
    }
}

class Parser {
public:
    Parser(std::string_view document, std::size_t most_deep) : text_(document), most_deep_(most_deep) {}

    Value whole() {
        Value value = any(0);
        blanks();
        if (at_ != text_.size()) fail("end of document");
        return value;
    }

private:
    [[noreturn]] void fail(const std::string& wanted) const {
        throw std::runtime_error("Expecting " + wanted + " at byte " + std::to_string(at_));
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void blanks() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
    }

    bool takes(char c) {
        blanks();
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    bool takes(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Value any(std::size_t depth) {
        if (depth > most_deep_) fail("at most " + std::to_string(most_deep_) + " levels");
        blanks();
        Value value;
        switch (peek()) {
            case '{': object(value, depth); break;
            case '[': list(value, depth); break;
            case '"':
                value.kind = Value::Kind::text;
                value.text = string();
                break;
            case 't':
            case 'f':
                value.kind = Value::Kind::boolean;
                value.boolean = takes(std::string_view("true"));
                if (!value.boolean && !takes(std::string_view("false"))) fail("value");
                break;
            case 'n':
                if (!takes(std::string_view("null"))) fail("value");
                break;
            default: number(value);
        }
        return value;
    }

    void object(Value& value, std::size_t depth) {
        value.kind = Value::Kind::object;
        ++at_;
        if (takes('}')) return;
        do {
            blanks();
            if (peek() != '"') fail("property name");
            std::string key = string();
            if (!takes(':')) fail("':'");
            value.members.emplace_back(std::move(key), any(depth + 1));
        } while (takes(','));
        if (!takes('}')) fail("',' or '}'");
    }

    void list(Value& value, std::size_t depth) {
        value.kind = Value::Kind::list;
        ++at_;
        if (takes(']')) return;
        do value.items.push_back(any(depth + 1));
        while (takes(','));
        if (!takes(']')) fail("',' or ']'");
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int k = 0; k < 4; ++k, ++at_) {
            const char c = peek();
            const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) fail("four hexadecimal digits");
            code = code * 16 + static_cast<unsigned>(digit);
        }
        return code;
    }

    void escape(std::string& out) {
        static const char* const from = "\"\\/bfnrt";
        static const char* const to = "\"\\/\b\f\n\r\t";
        const char c = peek();
        if (const char* found = c ? std::strchr(from, c) : nullptr) {
            out += to[found - from];
            ++at_;
            return;
        }
        if (c != 'u') fail("an escape that JSON knows");
        ++at_;
        unsigned code = hex4();
        if (code >= 0xd800 && code < 0xdc00 && takes(std::string_view("\\u"))) {
            const unsigned low = hex4();
            if (low < 0xdc00 || low >= 0xe000) fail("the second half of a character");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xd800 && code < 0xe000) {
            fail("both halves of a character");
        }
        append_utf8(out, code);
    }

    std::string string() {
        std::string out;
        ++at_;
        while (peek() != '"' || at_ >= text_.size()) {
            if (at_ >= text_.size()) fail("'\"'");
            if (text_[at_] == '\\') {
                ++at_;
                escape(out);
                continue;
            }
            if (static_cast<unsigned char>(text_[at_]) < 0x20) fail("no control character in a string");
            const std::size_t length = utf8_length(text_, at_);
            if (!length) fail("UTF-8");
            out.append(text_.substr(at_, length));
            at_ += length;
        }
        ++at_;
        return out;
    }

    bool digits() {
        const std::size_t start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ > start;
    }

    void number(Value& value) {
        const std::size_t start = at_;
        if (peek() == '-') ++at_;
        const std::size_t first = at_;
        if (!digits()) {
            at_ = start;
            fail("value");
        }
        if (text_[first] == '0' && at_ > first + 1) fail("no leading zero");
        bool is_integer = true;
        if (peek() == '.') {
            ++at_;
            is_integer = false;
            if (!digits()) fail("digit");
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            is_integer = false;
            if (peek() == '+' || peek() == '-') ++at_;
            if (!digits()) fail("digit");
        }
        const std::string word(text_.substr(start, at_ - start));
        value.real = std::strtod(word.c_str(), nullptr);
        if (!std::isfinite(value.real)) fail("a number of a size that a double can hold");
        value.kind = Value::Kind::real;
        errno = 0;
        const long long exact = is_integer ? std::strtoll(word.c_str(), nullptr, 10) : 0;
        if (is_integer && errno == 0) {
            value.kind = Value::Kind::integer;
            value.integer = exact;
        }
    }

    std::string_view text_;
    std::size_t most_deep_, at_ = 0;
};

}  // namespace

bool Value::is_set() const {
    switch (kind) {
        case Kind::null: return false;
        case Kind::boolean: return boolean;
        case Kind::integer:
        case Kind::real: return real != 0;
        case Kind::text: return !text.empty();
        case Kind::list: return !items.empty();
        case Kind::object: return !members.empty();
    }
    return false;
}

const Value& Value::operator[](std::string_view key) const {
    static const Value none;
    for (auto member = members.rbegin(); member != members.rend(); ++member)
        if (member->first == key) return member->second;
    return none;
}

Value parsed(std::string_view document, std::size_t most_deep) { return Parser(document, most_deep).whole(); }

namespace {
void show(const Value& value, std::string& out) {
    if (out.size() > 200) return;
    switch (value.kind) {
        case Value::Kind::null: out += "None"; break;
        case Value::Kind::boolean: out += value.boolean ? "True" : "False"; break;
        case Value::Kind::integer: out += std::to_string(value.integer); break;
        case Value::Kind::real: out += number(value.real); break;
        case Value::Kind::text: out += shown_text(value.text); break;
        case Value::Kind::list:
            out += "[";
            for (std::size_t k = 0; k < value.items.size(); ++k) {
                if (k) out += ", ";
                show(value.items[k], out);
            }
            out += "]";
            break;
        case Value::Kind::object:
            out += "{";
            for (std::size_t k = 0; k < value.members.size(); ++k) {
                out += (k ? ", '" : "'") + value.members[k].first + "': ";
                show(value.members[k].second, out);
            }
            out += "}";
    }
}
}  // namespace

std::string shown_text(const std::string& text) {
    const std::string inside = in_quotes(text);  // on one line
    return "'" + inside.substr(1, inside.size() - 2) + "'";
}

std::string shown(const Value& value) {
    std::string out;
    show(value, out);
    if (out.size() <= 240) return out;
    std::size_t cut = 200;
    while (cut && (static_cast<unsigned char>(out[cut]) & 0xc0) == 0x80) --cut;  // not inside a character
    return out.substr(0, cut) + "…";
}

std::string in_quotes(std::string_view text) {
    std::string out = "\"";
    for (std::size_t at = 0; at < text.size();) {
        const char c = text[at];
        const std::size_t length = utf8_length(text, at);
        if (c == '"' || c == '\\') {
            (out += '\\') += c;
        } else if (c == '\n') {
            out += "\\n";
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
            out += code;
        } else if (!length) {
            out += "\xef\xbf\xbd";
        } else {
            out.append(text.substr(at, length));
        }
        at += length ? length : 1;
    }
    return out += '"';
}

std::string number(double value) {
    if (!std::isfinite(value)) return "null";
    char text[40];
    for (int digits = 15; digits <= 17; ++digits) {
        std::snprintf(text, sizeof text, "%.*g", digits, value);
        if (std::strtod(text, nullptr) == value) break;
    }
    return text;
}

std::string list(const std::vector<std::string>& values) {
    std::string out = "[";
    for (std::size_t k = 0; k < values.size(); ++k) (out += k ? "," : "") += values[k];
    return out += ']';
}

Object& Object::raw(std::string_view key, std::string_view json) {
    if (!inside_.empty()) inside_ += ',';
    inside_ += in_quotes(key);
    inside_ += ':';
    inside_ += json;
    return *this;
}

Object& Object::add(const Object& more) {
    if (!inside_.empty() && !more.inside_.empty()) inside_ += ',';
    inside_ += more.inside_;
    return *this;
}

Object& Object::add(std::string_view key, double value) { return raw(key, number(value)); }

Object& Object::add(std::string_view key, const std::vector<std::string>& texts) {
    std::vector<std::string> values;
    for (const std::string& text : texts) values.push_back(in_quotes(text));
    return raw(key, list(values));
}

std::string base64(const void* bytes, std::size_t size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const auto* in = static_cast<const unsigned char*>(bytes);
    std::string out;
    out.reserve((size + 2) / 3 * 4);
    for (std::size_t k = 0; k < size; k += 3) {
        const std::size_t left = size - k;
        const unsigned group = static_cast<unsigned>(in[k] << 16) | (left > 1 ? static_cast<unsigned>(in[k + 1] << 8) : 0u) | (left > 2 ? in[k + 2] : 0u);
        out += letters[group >> 18];
        out += letters[(group >> 12) & 63];
        out += left > 1 ? letters[(group >> 6) & 63] : '=';
        out += left > 2 ? letters[group & 63] : '=';
    }
    return out;
}

}  // namespace json
