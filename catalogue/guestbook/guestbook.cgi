#!/usr/bin/perl
# A guest book. Entries are lines of JSON in SERAI_DATA/entries, the oldest
# first. A visitor may write again after half a minute; a field that people do
# not see keeps out programs that fill in all they find.
use v5.36;
use utf8;
use Encode ();
use Fcntl qw(:flock);
use File::Path ();
use JSON::PP ();
use constant { NAME => 80, TEXT => 2000, FULL => 2 << 20, PAUSE => 30 };

binmode STDOUT, ':encoding(UTF-8)';
main();

sub main () {
    my $closed = setting('closed') eq 'true';
    if (($ENV{REQUEST_METHOD} // '') eq 'POST') {
        return page('403 Forbidden', 'This guest book is closed.') if $closed;
        my $f = form() or return page('400 Bad Request', 'That is not the form of this page.', 1);
        return redirect() if length($f->{website} // '');    # taken by nobody who sees the page
        my ($name, $text) = map { trimmed($f->{$_} // '') } qw(name text);
        return page('422 Unprocessable Content', 'Please write something.', 1, $f) if !length $text;
        return page('422 Unprocessable Content', 'That is too long.', 1, $f) if length $name > NAME || length $text > TEXT;
        my $why = add({ time => time, name => length $name ? $name : 'A guest', text => $text });
        return page('429 Too Many Requests', $why, 1, $f) if $why;
        return redirect();
    }
    page('200 OK', '', !$closed);
}

sub setting ($name) { return Encode::decode('UTF-8', $ENV{ 'SERAI_SETTING_' . uc $name } // '') }
sub trimmed ($text) { return $text =~ s/\r\n?/\n/gr =~ s/[^\P{Cc}\n\t]//gr =~ s/\A\s+|\s+\z//gr }
sub html ($text) { return $text =~ s{([&<>"'])}{'&#' . ord($1) . ';'}ger }

# form reads what was posted, or nothing where that is no form of ours.
sub form () {
    my $length = $ENV{CONTENT_LENGTH} // 0;
    return if $length > 4 * (NAME + TEXT) * 3 || ($ENV{CONTENT_TYPE} // '') !~ m{\Aapplication/x-www-form-urlencoded\b}i;
    read STDIN, (my $body = ''), $length;
    my %f;
    for (split /[&;]/, $body) {
        my ($name, $value) = map { Encode::decode('UTF-8', tr/+/ /r =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ger) } split /=/, $_, 2;
        $f{$name} = $value // '' if length($name // '');
    }
    return \%f;
}

# locked opens a file of the book for oneself alone.
sub locked ($name) {
    File::Path::make_path($ENV{SERAI_DATA}, { mode => 0700 });
    open my $file, '+>>:raw', "$ENV{SERAI_DATA}/$name" or die "open $name: $!\n";
    flock $file, LOCK_EX or die "lock $name: $!\n";
    seek $file, 0, 0;
    return $file;
}

# add writes an entry; it returns a sentence where it may not be written.
sub add ($entry) {
    my $recent = locked('recent');
    my $now = time;
    my %last = map { /^(\S+) (\d+)$/ && $2 > $now - PAUSE ? ($1, $2) : () } <$recent>;
    my $who = $ENV{REMOTE_ADDR} // '?';
    return 'You have just written something. Please wait a little.' if $last{$who};
    my $book = locked('entries');
    return 'This guest book is full.' if -s $book > FULL;
    print {$book} JSON::PP->new->utf8->canonical->encode($entry), "\n";
    close $book or die "write an entry: $!\n";
    $last{$who} = $now;
    truncate $recent, 0;
    print {$recent} map { "$_ $last{$_}\n" } sort keys %last;
    close $recent or die "write who wrote: $!\n";
    return;
}

# entries are those of a page, the newest first, and how many pages there are.
sub entries ($page, $size) {
    open my $book, '<:raw', "$ENV{SERAI_DATA}/entries" or return ([], 1);
    my @lines = reverse <$book>;
    my $first = ($page - 1) * $size;
    my @some = grep { defined } @lines[$first .. $first + $size - 1];
    return ([grep { ref eq 'HASH' } map { eval { JSON::PP->new->utf8->decode($_) } } @some], int((@lines + $size - 1) / $size) || 1);
}

sub redirect () {
    print "Status: 303 See Other\nLocation: ", ($ENV{SCRIPT_NAME} || '/'), "\nContent-Type: text/plain\n\nThank you.\n";
}

sub page ($status, $message, $open = 0, $f = {}) {
    my $size = setting('page') =~ /\A([1-9][0-9]?|100)\z/ ? $1 : 20;
    my ($page) = ($ENV{QUERY_STRING} // '') =~ /\Apage=([1-9][0-9]{0,5})\z/;
    my ($entries, $pages) = entries($page //= 1, $size);
    my $title = html(setting('title'));
    my $self = html($ENV{SCRIPT_NAME} || '/');
    print "Status: $status\nContent-Type: text/html; charset=utf-8\nX-Content-Type-Options: nosniff\n",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'\n\n";
    print <<"END";
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>body{font:1em/1.5 sans-serif;max-width:40em;margin:2em auto;padding:0 1em}article{border-top:1px solid #999;padding:.5em 0}p.text{white-space:pre-wrap;overflow-wrap:anywhere}label{display:block}input,textarea{width:100%;box-sizing:border-box;font:inherit}.nobody{position:absolute;left:-999em}</style>
</head><body><main>
<h1>$title</h1>
END
    print '<p role="alert"><strong>', html($message), "</strong></p>\n" if length $message;
    if ($open) {
        my ($name, $text) = map { html($f->{$_} // '') } qw(name text);
        my ($most, $longest, $intro) = (NAME, TEXT, html(setting('intro')));
        print <<"END";
<p>$intro</p>
<form method="post" action="$self">
<p><label for="name">Your name</label><input id="name" name="name" maxlength="$most" autocomplete="name" value="$name"></p>
<p><label for="text">Your words</label><textarea id="text" name="text" rows="5" maxlength="$longest" required>$text</textarea></p>
<p class="nobody" aria-hidden="true"><label for="website">Leave this empty</label><input id="website" name="website" tabindex="-1" autocomplete="off"></p>
<p><button>Write</button></p>
</form>
END
    }
    for my $e (@$entries) {
        my @t = gmtime($e->{time} // 0);
        my $when = sprintf '%04d-%02d-%02d', $t[5] + 1900, $t[4] + 1, $t[3];
        print '<article><h2>', html($e->{name} // ''), qq(</h2><p><time>$when</time></p><p class="text">), html($e->{text} // ''), "</p></article>\n";
    }
    print "<p>Nobody has written yet.</p>\n" if !@$entries;
    if ($pages > 1) {
        print '<nav aria-label="Pages"><p>';
        print qq(<a href="$self?page=), $page - 1, '">Newer</a> ' if $page > 1;
        print "Page $page of $pages";
        print qq( <a href="$self?page=), $page + 1, '">Older</a>' if $page < $pages;
        print "</p></nav>\n";
    }
    print "</main></body></html>\n";
}
